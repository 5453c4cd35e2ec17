"""Golden vectors and archives: tolerances that hold elsewhere, bytes that do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from covey_converters.deterministic import write_npz
from covey_converters.golden import tolerance, write_golden

OUTPUTS = np.array([[1.0, -2.0, 8.0]])


def test_a_float_tolerance_covers_both_kernels() -> None:
    found = tolerance("fp32", OUTPUTS, OUTPUTS + 3e-4, OUTPUTS, None)
    assert 3e-4 * 4 <= found.absolute <= 3e-4 * 4.5


def test_equal_kernels_still_leave_room_for_rounding() -> None:
    assert 0 < tolerance("fp32", OUTPUTS, OUTPUTS, OUTPUTS, None).absolute < 1e-3
    assert tolerance("fp16", OUTPUTS, OUTPUTS, OUTPUTS, None).absolute > 0.05


def test_an_int8_tolerance_covers_more_than_one_step() -> None:
    found = tolerance("int8", OUTPUTS, OUTPUTS + 0.06, OUTPUTS + 0.1, 0.06)
    assert found.absolute >= 2 * 0.06
    assert found.absolute < 1.0


@given(st.floats(1e-6, 1e3), st.floats(0, 10))
def test_the_tolerance_is_never_below_what_was_seen(scale: float, difference: float) -> None:
    outputs = OUTPUTS * scale
    found = tolerance("int8", outputs, outputs + difference, outputs, None)
    assert found.absolute >= difference


def test_archives_do_not_change(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5.0), "a": np.ones((2, 2))}
    write_npz(tmp_path / "one.npz", arrays)
    write_npz(tmp_path / "two.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as loaded:
        assert sorted(loaded.files) == ["a", "b"]


def test_golden_arrays_are_named_by_direction(tmp_path: Path) -> None:
    write_golden(tmp_path / "golden.npz", {"image": np.zeros((3, 1, 4))}, {"scores": np.zeros((3, 1, 2))})
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as loaded:
        assert {name: loaded[name].shape for name in loaded.files} == {"in/image": (3, 1, 4), "out/scores": (3, 1, 2)}
