"""Builds of a tiny model, y = factor * x, as a server holds them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from covey_contract.manifest import (
    BLOCK_BYTES,
    DataType,
    FileEntry,
    Manifest,
    Runtime,
    TensorSpec,
    Tolerance,
    build_digest,
)
from covey_contract.wire import encode

MODEL = "scale"
SIZE = 8


@dataclass
class MadeBuild:
    """A build as the server holds it: files by their index on the wire."""

    manifest: Manifest
    manifest_bytes: bytes
    digest: str
    contents: list[bytes]


def onnx_scale(factor: float) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_build(version: str, factor: float, *, filler: int = 0, **changes: Any) -> MadeBuild:
    """y = factor * x; `filler` random bytes lie beside the model, to be fetched."""
    files = {"model.onnx": changes.pop("content", None) or onnx_scale(factor)}
    if filler:
        files["filler.bin"] = np.random.default_rng(int(factor * 1000)).bytes(filler)
    block_size = changes.pop("block_size", BLOCK_BYTES)
    contents = list(files.values())
    blocks = [data[at : at + block_size] for data in contents for at in range(0, len(data), block_size)]
    table = b"".join(hashlib.sha256(block).digest() for block in blocks)
    tensor = (TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, SIZE)),)
    fields: dict[str, Any] = {
        "model": MODEL,
        "version": version,
        "target": "onnxruntime-fp32",
        "runtime": Runtime.ONNXRUNTIME,
        "precision": "fp32",
        "entry": "model.onnx",
        "files": tuple(
            FileEntry(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        ),
        "table": FileEntry(path="blocks.bin", size=len(table), sha256=hashlib.sha256(table).hexdigest()),
        "block_size": block_size,
        "inputs": tensor,
        "outputs": (TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, SIZE)),),
        "tolerance": {"y": Tolerance(absolute=1e-4)},
        **changes,
    }
    manifest = Manifest(**fields)
    data = encode(manifest)
    return MadeBuild(manifest, data, build_digest(data), [table, *contents])
