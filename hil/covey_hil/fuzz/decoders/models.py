"""Models and their data, as the build process reads what somebody uploaded."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

from covey_contract.manifest import DataType, TensorSpec
from covey_converters.errors import BadInputError
from covey_converters.review import load
from covey_converters.samples import load_samples
from covey_converters.sources import archives
from covey_converters.sources.registry import format_of
from covey_converters.sources.tflite import _is_float
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders import files

_INPUT = TensorSpec(name="x", datatype=DataType.FP32, shape=(1, 2))


def _onnx_model(*, external: bool) -> bytes:
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
            weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"], name="relu")]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def _onnx(folder: Path) -> Made:
    """Its format, then the whole review: structure, shapes, weights beside it, ONNX's checker, shape inference."""
    path = folder / "model.onnx"
    (folder / "weights.bin").write_bytes(bytes(16))

    def read(data: bytes) -> object:
        path.write_bytes(data)
        format_of(path)
        return load(path)[1]

    return Made(read, (_onnx_model(external=False), _onnx_model(external=True)))


def _tflite(folder: Path) -> Made:
    path = folder / "model.tflite"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return _is_float(path)

    return Made(read, (_tflite_model(),))


def _tflite_model() -> bytes:
    """One multiplication by constants."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    buffers = [schema.BufferT(), schema.BufferT()]
    buffers[1].data = np.frombuffer(np.array([1.0, 2.0], "<f4").tobytes(), np.uint8)
    tensors = []
    for name, buffer in (("x", 0), ("factors", 1), ("y", 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, np.array((1, 2), np.int32), buffer
        tensor.type = schema.TensorType.FLOAT32
        tensors.append(tensor)
    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MUL
    operator.inputs, operator.outputs = np.array([0, 1], np.int32), np.array([2], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([2], np.int32)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _samples(folder: Path) -> Made:
    path = folder / "data.npz"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return len(load_samples(path, [_INPUT]))

    return Made(read, files.evaluations())


def _archive(folder: Path, *, unpacked: bool) -> Made:
    """What an archive claims; or all of it written out, within its folder."""
    path, out = folder / "model.zip", folder / "out"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        if not unpacked:
            return len(archives.check(path))
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        found = archives.unpack(path, out, re.compile(r"[A-Za-z0-9_./]+"), 1 << 20)
        assert all(one.resolve().is_relative_to(out.resolve()) for one in found)
        return len(found)

    return Made(read, files.archives())


_REFUSES = (BadInputError,)
DECODERS = (
    Decoder(
        "converter.onnx",
        "an operator",
        _onnx,
        _REFUSES,
        ("covey_converters.review", "covey_converters.sources.registry"),
        Form.BYTES,
        Share.DEAR,
        confined=True,
    ),
    Decoder(
        "converter.tflite",
        "an operator",
        _tflite,
        _REFUSES,
        ("covey_converters.sources.tflite",),
        Form.BYTES,
        Share.DEAR,
        confined=True,
    ),
    Decoder(
        "converter.samples", "an operator", _samples, _REFUSES, ("covey_converters.samples",), Form.BYTES, Share.DEAR
    ),
    Decoder(
        "converter.archive",
        "an operator",
        partial(_archive, unpacked=False),
        _REFUSES,
        ("covey_converters.sources.archives",),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder(
        "converter.unpacked",
        "an operator",
        partial(_archive, unpacked=True),
        _REFUSES,
        ("covey_converters.sources.archives",),
        Form.BYTES,
        Share.DEAR,
    ),
)
