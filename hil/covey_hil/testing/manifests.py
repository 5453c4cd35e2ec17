"""Manifests of builds that lie nowhere, for tests that are about something else than the bytes."""

from __future__ import annotations

from typing import Any

from covey_contract.manifest import DataType, FileEntry, Manifest, Runtime, TensorSpec


def floats(name: str, *shape: int) -> TensorSpec:
    """A tensor of FP32; -1 in its shape is the batch."""
    return TensorSpec(name=name, datatype=DataType.FP32, shape=shape)


def made_manifest(**changes: Any) -> Manifest:
    """Of one file for ONNX Runtime, from `x` to `y`; `changes` are its fields."""
    fields: dict[str, Any] = {
        "model": "m",
        "version": "1",
        "target": "onnxruntime-fp32",
        "runtime": Runtime.ONNXRUNTIME,
        "precision": "fp32",
        "entry": "model.onnx",
        "files": (FileEntry(path="model.onnx", size=1, sha256="0" * 64),),
        "table": FileEntry(path="blocks.bin", size=32, sha256="0" * 64),
        "inputs": (floats("x", -1, 2),),
        "outputs": (floats("y", -1, 2),),
    }
    return Manifest(**fields | changes)
