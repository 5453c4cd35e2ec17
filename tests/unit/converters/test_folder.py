"""A build's folder: the manifest's exact bytes, the block table, and that tampering shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from covey_contract.manifest import BLOCK_BYTES, DataType, TensorSpec, Tolerance, build_digest
from covey_converters import folder
from covey_converters.backend import Built
from covey_converters.errors import BadInputError
from covey_converters.golden import GOLDEN_FILE, write_golden
from covey_converters.spec import BuildSpec

SPEC = TensorSpec(name="x", datatype=DataType.FP32, shape=(1, 2))


@pytest.fixture
def build(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 5))
    write_golden(tmp_path / GOLDEN_FILE, {"x": np.zeros((4, 1, 2))}, {"x": np.zeros((4, 1, 2))})
    (tmp_path / "labels.txt").write_text("zero\none\n")
    built = Built(folder=tmp_path, files=("model.onnx",), entry="model.onnx", inputs=(SPEC,), outputs=(SPEC,))
    spec = BuildSpec(
        model="m", version="1.0", target="onnxruntime-int8", source="", out=str(tmp_path), work=str(tmp_path)
    )
    folder.write_manifest(tmp_path, spec, built, {"x": Tolerance(absolute=0.1)}, 40.0)
    return tmp_path


def test_the_manifest_names_every_file(build: Path) -> None:
    manifest = folder.read_manifest(build)
    assert [file.path for file in manifest.files] == ["model.onnx", GOLDEN_FILE, "labels.txt"]
    assert manifest.golden == GOLDEN_FILE
    assert manifest.labels == "labels.txt"
    assert folder.digest_of(build) == build_digest((build / "manifest.json").read_bytes())
    assert folder.problems(build) == []


def test_the_table_has_the_digest_of_each_block(build: Path) -> None:
    table = (build / "blocks.bin").read_bytes()
    data = (build / "model.onnx").read_bytes()
    assert len(table) == 32 * (4 + 1 + 1)
    assert table[32:64] == hashlib.sha256(data[BLOCK_BYTES : 2 * BLOCK_BYTES]).digest()
    assert table[96:128] == hashlib.sha256(data[3 * BLOCK_BYTES :]).digest()


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "blocks.bin"])
def test_a_changed_file_shows(build: Path, name: str) -> None:
    data = bytearray((build / name).read_bytes())
    data[len(data) // 2] ^= 1
    (build / name).write_bytes(data)
    assert folder.problems(build) == [f"{name} does not have the digest that the manifest says"]


def test_short_and_missing_files_show(build: Path) -> None:
    (build / "model.onnx").write_bytes(b"short")
    (build / "labels.txt").unlink()
    assert folder.problems(build) == [
        "model.onnx has 5 bytes; the manifest says 196613",
        "labels.txt is missing",
    ]


def test_a_broken_manifest(build: Path) -> None:
    (build / "manifest.json").write_bytes(b"{")
    with pytest.raises(BadInputError, match=r"manifest.json: Manifest: Input data was truncated"):
        folder.read_manifest(build)
