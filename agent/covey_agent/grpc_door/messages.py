"""The protocol's messages, made of a table when they are first needed: no generated code, and no clash with anybody's who has some.

Only numbers and types travel, so that messages stand side by side here which the protocol nests, and its maps are repeated entries of `key`
and `value`, which are the same bytes. Source: "Open Inference Protocol", gRPC (kserve/open-inference-protocol), with the repository,
configuration, statistics and system shared memory extensions of Triton's `grpc_service.proto` and `model_config.proto`; of both as much as
the gateway has something to say of.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
_PACKAGE = "inference"
_ONE_OF = "?"  # before a field's name: one of a choice
_MANY = "*"  # before a field's name: repeated

# Message -> (number, name, type); a type that is no scalar is another message of the table.
_TABLE: dict[str, tuple[tuple[int, str, str], ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ((1, "live", "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ((1, "ready", "bool"),),
    "ModelReadyRequest": ((1, "name", "string"), (2, "version", "string")),
    "ModelReadyResponse": ((1, "ready", "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ((1, "name", "string"), (2, "version", "string"), (3, "*extensions", "string")),
    "ModelMetadataRequest": ((1, "name", "string"), (2, "version", "string")),
    "TensorMetadata": ((1, "name", "string"), (2, "datatype", "string"), (3, "*shape", "int64")),
    "ModelMetadataResponse": (
        (1, "name", "string"),
        (2, "*versions", "string"),
        (3, "platform", "string"),
        (4, "*inputs", "TensorMetadata"),
        (5, "*outputs", "TensorMetadata"),
    ),
    "InferParameter": (
        (1, "?bool_param", "bool"),
        (2, "?int64_param", "int64"),
        (3, "?string_param", "string"),
        (4, "?double_param", "double"),
        (5, "?uint64_param", "uint64"),
    ),
    "Parameter": ((1, "key", "string"), (2, "value", "InferParameter")),
    "Contents": (
        (1, "*bool_contents", "bool"),
        (2, "*int_contents", "int32"),
        (3, "*int64_contents", "int64"),
        (4, "*uint_contents", "uint32"),
        (5, "*uint64_contents", "uint64"),
        (6, "*fp32_contents", "float"),
        (7, "*fp64_contents", "double"),
        (8, "*bytes_contents", "bytes"),
    ),
    "Tensor": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "*shape", "int64"),
        (4, "*parameters", "Parameter"),
        (5, "contents", "Contents"),
    ),
    "RequestedOutput": ((1, "name", "string"), (2, "*parameters", "Parameter")),
    "ModelInferRequest": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "*parameters", "Parameter"),
        (5, "*inputs", "Tensor"),
        (6, "*outputs", "RequestedOutput"),
        (7, "*raw_input_contents", "bytes"),
    ),
    "ModelInferResponse": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "*parameters", "Parameter"),
        (5, "*outputs", "Tensor"),
        (6, "*raw_output_contents", "bytes"),
    ),
    "ModelStreamInferResponse": ((1, "error_message", "string"), (2, "infer_response", "ModelInferResponse")),
    "RepositoryIndexRequest": ((1, "repository_name", "string"), (2, "ready", "bool")),
    "ModelIndex": ((1, "name", "string"), (2, "version", "string"), (3, "state", "string"), (4, "reason", "string")),
    "RepositoryIndexResponse": ((1, "*models", "ModelIndex"),),
    "ModelConfigRequest": ((1, "name", "string"), (2, "version", "string")),
    "LatestVersions": ((1, "num_versions", "uint32"),),
    "VersionPolicy": ((1, "latest", "LatestVersions"),),
    "ConfigInput": ((1, "name", "string"), (2, "data_type", "int32"), (4, "*dims", "int64")),
    "ConfigOutput": ((1, "name", "string"), (2, "data_type", "int32"), (3, "*dims", "int64")),
    "InstanceGroup": ((1, "name", "string"), (2, "count", "int32"), (4, "kind", "int32")),
    "ConfigText": ((1, "string_value", "string"),),
    "ConfigParameter": ((1, "key", "string"), (2, "value", "ConfigText")),
    "ModelConfig": (
        (1, "name", "string"),
        (2, "platform", "string"),
        (3, "version_policy", "VersionPolicy"),
        (4, "max_batch_size", "int32"),
        (5, "*input", "ConfigInput"),
        (6, "*output", "ConfigOutput"),
        (7, "*instance_group", "InstanceGroup"),
        (14, "*parameters", "ConfigParameter"),
        (17, "backend", "string"),
    ),
    "ModelConfigResponse": ((1, "config", "ModelConfig"),),
    "ModelStatisticsRequest": ((1, "name", "string"), (2, "version", "string")),
    "Duration": ((1, "count", "uint64"), (2, "ns", "uint64")),
    "InferStatistics": (
        (1, "success", "Duration"),
        (2, "fail", "Duration"),
        (3, "queue", "Duration"),
        (4, "compute_input", "Duration"),
        (5, "compute_infer", "Duration"),
        (6, "compute_output", "Duration"),
    ),
    "BatchStatistics": ((1, "batch_size", "uint64"), (3, "compute_infer", "Duration")),
    "ModelStatistics": (
        (1, "name", "string"),
        (2, "version", "string"),
        (3, "last_inference", "uint64"),
        (4, "inference_count", "uint64"),
        (5, "execution_count", "uint64"),
        (6, "inference_stats", "InferStatistics"),
        (7, "*batch_stats", "BatchStatistics"),
    ),
    "ModelStatisticsResponse": ((1, "*model_stats", "ModelStatistics"),),
    "SystemSharedMemoryStatusRequest": ((1, "name", "string"),),
    "RegionStatus": ((1, "name", "string"), (2, "key", "string"), (3, "offset", "uint64"), (4, "byte_size", "uint64")),
    "Region": ((1, "key", "string"), (2, "value", "RegionStatus")),
    "SystemSharedMemoryStatusResponse": ((1, "*regions", "Region"),),
    "SystemSharedMemoryRegisterRequest": (
        (1, "name", "string"),
        (2, "key", "string"),
        (3, "offset", "uint64"),
        (4, "byte_size", "uint64"),
    ),
    "SystemSharedMemoryRegisterResponse": (),
    "SystemSharedMemoryUnregisterRequest": ((1, "name", "string"),),
    "SystemSharedMemoryUnregisterResponse": (),
}


def _made() -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="covey/inference.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for number, word, kind in fields:
            made = message.field.add(name=word.lstrip(_ONE_OF + _MANY), number=number)
            made.label = field.LABEL_REPEATED if word.startswith(_MANY) else field.LABEL_OPTIONAL
            if kind in _TABLE:
                made.type, made.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                made.type = getattr(field, f"TYPE_{kind.upper()}")
            if word.startswith(_ONE_OF):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                made.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _TABLE}


# Name -> class; what protobuf makes of a descriptor has no type that a checker knows.
KINDS: dict[str, Any] = _made()
