"""Calibration and evaluation files: what is read, and the one line for each kind of bad one."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_contract.manifest import DataType, TensorSpec
from covey_converters import samples
from covey_converters.errors import BadInputError

IMAGE = TensorSpec(name="image", datatype=DataType.FP32, shape=(1, 1, 4, 4))
IDS = TensorSpec(name="ids", datatype=DataType.INT32, shape=(1, 7))


def test_a_batch_axis_is_added(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", image=np.zeros((5, 1, 4, 4), np.float64), ids=np.ones((5, 7), np.int64), labels=np.arange(5)
    )
    found = samples.load_samples(tmp_path / "a.npz", [IMAGE, IDS])
    assert found.arrays["image"].shape == (5, 1, 1, 4, 4)
    assert found.arrays["image"].dtype == np.float32
    assert found.arrays["ids"].shape == (5, 1, 7)
    assert found.labels is not None
    assert len(found) == 5
    assert next(iter(found))["image"].shape == (1, 1, 4, 4)


def test_samples_spread_over_the_file() -> None:
    drawn = samples.random_samples([IMAGE], 100)
    assert drawn.synthetic
    assert len(drawn.spread(7)) == 7
    assert len(drawn.spread(1000)) == 100
    assert len(drawn.affordable(activations=10, most=64)) == 64
    assert len(drawn.affordable(activations=1 << 40, most=64)) == 32


def test_random_samples_are_the_same_each_time() -> None:
    one, other = samples.random_samples([IMAGE, IDS], 3, seed=4), samples.random_samples([IMAGE, IDS], 3, seed=4)
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in ("image", "ids"))


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"picture": np.zeros((5, 1, 4, 4))}, "no array for input 'image'; it holds 'picture'"),
        ({"image": np.zeros((5, 3, 4, 4))}, r"has shape \[5, 3, 4, 4\]; samples of \[1, 1, 4, 4\] are needed"),
        ({"image": np.zeros((4, 4))}, "has shape"),
        ({"image": np.zeros((0, 1, 4, 4))}, "0 samples"),
        ({"image": np.full((2, 1, 4, 4), np.nan)}, "holds NaN"),
        ({"image": np.zeros((2, 1, 4, 4), complex)}, "is complex128; the model takes float32"),
        ({"image": np.zeros((2, 1, 4, 4)), "labels": np.zeros(3, int)}, "'labels' must be 2 class numbers"),
        ({"image": np.zeros((2, 1, 4, 4)), "labels": np.zeros(2)}, "'labels' must be 2 class numbers"),
        ({"image": np.zeros((2, 1, 4, 4)), "labels": np.array([-1, 2])}, "'labels' must be 2 class numbers"),
        ({"image": np.array([{}], dtype=object)}, "not a readable .npz"),
    ],
)
def test_bad_files(tmp_path: Path, arrays: dict[str, Any], line: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInputError, match=line):
        samples.load_samples(tmp_path / "a.npz", [IMAGE])


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(BadInputError, match="no such file"):
        samples.load_samples(path, [IMAGE])
    path.write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(BadInputError, match="not a readable .npz"):
        samples.load_samples(path, [IMAGE])
    np.savez(path, image=np.zeros((50, 1, 4, 4)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInputError, match="not a readable .npz"):
        samples.load_samples(path, [IMAGE])


@pytest.mark.parametrize("shape", [(10**12, 1, 4, 4), (10**6, 4, 4), (5, -1, 4, 4), (2**62, 16)])
def test_arrays_that_claim_what_they_do_not_hold(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(64))
    with pytest.raises(BadInputError, match="not a readable .npz"):
        samples.load_samples(tmp_path / "a.npz", [IMAGE])


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((1000, 1, 4, 4), np.float32))
    monkeypatch.setattr(samples, "MAX_UNPACKED_BYTES", 10_000)
    with pytest.raises(BadInputError, match="unpacks to 64128 bytes; at most 10000"):
        samples.load_samples(tmp_path / "a.npz", [IMAGE])


def test_samples_of_different_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((5, 1, 4, 4)), ids=np.zeros((4, 7), int))
    with pytest.raises(BadInputError, match="different numbers of samples"):
        samples.load_samples(tmp_path / "a.npz", [IMAGE, IDS])
