"""Between the protocol's two ways of saying the same: gRPC's messages and the body of an HTTP request with binary tensors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.oip_elements import pack
from covey_agent.grpc_door.messages import KINDS
from covey_contract.manifest import DataType

_SHARED = "shared_memory_region"
# Where the elements of a type stand in `Contents`.
_CONTENTS = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
}

# By their numbers in `model_config.proto`.
_TYPES = tuple(
    f"TYPE_{name}"
    for name in (
        *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
        *("FP16", "FP32", "FP64", "STRING", "BF16"),
    )
)
_KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")


def request_body(request: Any, timeout_s: float | None) -> tuple[bytes, int]:
    """The body of `POST …/infer`, and the length of its JSON part. `timeout_s`: what is left of the caller's time. Raises `BadRequest`."""
    raw = list(request.raw_input_contents)
    pieces: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for index, tensor in enumerate(request.inputs):
        parameters = _plain(tensor.parameters)
        if _SHARED not in parameters:
            content = _content(f"inputs[{index}]", tensor, raw)
            parameters = {"binary_data_size": len(content)}
            pieces.append(content)
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        )
    if raw:
        raise BadRequest(f"raw_input_contents: {len(raw)} more than there are inputs outside of shared memory")
    parameters = {**_plain(request.parameters), "binary_data_output": True}
    if timeout_s is not None:
        theirs = parameters.get("timeout")
        ours = max(1, int(timeout_s * 1e6))
        parameters["timeout"] = min(theirs, ours) if isinstance(theirs, int) and theirs > 0 else ours
    outputs = [{"name": one.name, "parameters": _wanted(_plain(one.parameters))} for one in request.outputs]
    header = msgspec.json.encode({"id": request.id, "parameters": parameters, "inputs": inputs, "outputs": outputs})
    return b"".join((header, *pieces)), len(header)


def infer_response(body: bytes, header_bytes: int) -> Any:
    """A `ModelInferResponse` of the gateway's answer."""
    header = msgspec.json.decode(body[:header_bytes])
    made = KINDS["ModelInferResponse"](
        model_name=header["model_name"],
        model_version=header["model_version"],
        id=header.get("id", ""),
        parameters=_parameters(header.get("parameters", {})),
    )
    at = header_bytes
    for output in header["outputs"]:
        told = dict(output.get("parameters", {}))
        if (size := told.pop("binary_data_size", None)) is not None:
            made.raw_output_contents.append(body[at : at + size])
            at += size
        made.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"], parameters=_parameters(told)
        )
    return made


def model_config(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a `ModelConfig` is made of, out of the gateway's answer: names of types become numbers, its map becomes entries."""

    def tensors(name: str) -> list[dict[str, Any]]:
        return [{**one, "data_type": _TYPES.index(one["data_type"])} for one in told[name]]

    return {
        **told,
        "input": tensors("input"),
        "output": tensors("output"),
        "instance_group": [{**one, "kind": _KINDS.index(one["kind"])} for one in told["instance_group"]],
        "parameters": [{"key": key, "value": value} for key, value in told["parameters"].items()],
    }


def _content(field: str, tensor: Any, raw: list[bytes]) -> bytes:
    """The tensor's raw bytes: those that come next, or its elements packed."""
    if raw:
        return raw.pop(0)
    try:
        datatype = DataType(tensor.datatype)
        name = _CONTENTS[datatype]
    except (ValueError, KeyError) as error:
        raise BadRequest(f"{field}.datatype: {tensor.datatype[:100]!r} without raw_input_contents") from error
    return pack(field, list(getattr(tensor.contents, name)), datatype)


def _wanted(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters if _SHARED in parameters else {**parameters, "binary_data": True}


def _plain(parameters: Iterable[Any]) -> dict[str, Any]:
    """Parameters as JSON has them; one without a value is left out."""
    chosen = ((one.key, one.value, one.value.WhichOneof("choice")) for one in parameters)
    return {key: getattr(value, which) for key, value, which in chosen if which is not None}


def _parameters(given: dict[str, Any]) -> list[Any]:
    return [KINDS["Parameter"](key=key, value=_parameter(value)) for key, value in given.items()]


def _parameter(value: object) -> Any:
    kind = KINDS["InferParameter"]
    if isinstance(value, bool):
        return kind(bool_param=value)
    if isinstance(value, int):
        return kind(int64_param=value)
    if isinstance(value, float):
        return kind(double_param=value)
    return kind(string_param=str(value))
