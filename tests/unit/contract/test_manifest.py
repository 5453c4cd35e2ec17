"""Manifests: what a build may claim, and what is refused before a byte is fetched."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, DataType, Manifest, Runtime, block_count, build_digest, check_target
from covey_contract.wire import decode, encode

DIGEST = "ab" * 32


def manifest(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": "digits",
        "version": "1.0",
        "target": "onnxruntime-fp32",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "entry": "model.onnx",
        "files": [{"path": "model.onnx", "size": BLOCK_BYTES + 1, "sha256": DIGEST}],
        "table": {"path": "blocks.bin", "size": 64, "sha256": DIGEST},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 32, 32]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 10]}],
    }
    return {**base, **changes}


def read(document: dict[str, Any]) -> Manifest:
    return decode(Manifest, msgspec.json.encode(document))


def test_a_good_manifest_reads_back() -> None:
    found = read(manifest())
    assert decode(Manifest, encode(found)) == found
    assert found.size == BLOCK_BYTES + 1
    assert [file.path for file in found.wire_files()] == ["blocks.bin", "model.onnx"]


def test_a_build_is_named_by_the_exact_bytes() -> None:
    data = encode(read(manifest()))
    assert build_digest(data) != build_digest(data.replace(b":", b": "))


def file(path: str) -> dict[str, Any]:
    return {"path": path, "size": BLOCK_BYTES + 1, "sha256": DIGEST}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [], "table": {"path": "blocks.bin", "size": 0, "sha256": DIGEST}},
        {"files": [file("model.onnx"), file("model.onnx")], "table": {"path": "b", "size": 128, "sha256": DIGEST}},
        {"entry": "other.onnx"},
        {"golden": "golden.npz"},
        {"labels": "labels.txt"},
        {"table": {"path": "blocks.bin", "size": 32, "sha256": DIGEST}},
        {"block_size": 1},
        {"block_size": BLOCK_BYTES * 2},
        {"model": "../etc"},
        {"model": "Digits"},
        {"version": "1/0"},
        {"runtime": "torch"},
        {"files": [{"path": "model.onnx", "size": -1, "sha256": DIGEST}]},
        {"files": [{"path": "model.onnx", "size": 1, "sha256": "short"}]},
        *(
            {"files": [file(path)], "entry": path}
            for path in ("../x", "/x", "a//b", "a/../b", "", ".", ".hidden", "a\\b", "x\n")
        ),
    ],
)
def test_bad_manifests_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        read(manifest(**changes))


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2)])
def test_block_counts(size: int, blocks: int) -> None:
    assert block_count(size) == blocks


def test_every_data_type_has_its_size() -> None:
    sizes = {
        "BOOL": 1,
        "UINT8": 1,
        "UINT16": 2,
        "UINT32": 4,
        "UINT64": 8,
        "INT8": 1,
        "INT16": 2,
        "INT32": 4,
        "INT64": 8,
    }
    sizes |= {"FP16": 2, "FP32": 4, "FP64": 8}
    assert {kind.value: kind.itemsize for kind in DataType} == sizes


def test_targets() -> None:
    assert check_target("openvino-int8") == (Runtime.OPENVINO, "int8")
    assert check_target("tensorrt-rtx-fp32") == (Runtime.TENSORRT_RTX, "fp32")
    assert check_target("tensorrt-fp16-sm87") == (Runtime.TENSORRT, "fp16")
    for bad in ("", "openvino", "openvino-int4", "torch-fp32", "tensorrt-fp16-sm", "x openvino-int8"):
        with pytest.raises(DecodeError):
            check_target(bad)
