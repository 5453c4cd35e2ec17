"""The load generator's record counts what it says it counts: a demo that could not show a wrong answer would show nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from covey_hil.demo.run import good
from covey_hil.load.record import Record, Recorder
from covey_hil.load.wire import Answer


def says(digit: int, build: str = "b1", status: int = 200) -> Answer:
    logits = np.zeros((1, 10), np.float32)
    logits[0, digit] = 1
    return Answer(status, logits if status == 200 else None, build, "onnxruntime-fp32", "1.0")


def record_of(rows: list[tuple[int, int, Answer]], folder: Path) -> Record:
    """Rows of image, label, answer; due one a second, each answered in 10 ms per row number."""
    recorder = Recorder()
    for number, (image, label, answer) in enumerate(rows):
        recorder.add("d1", float(number), 0.01 * (number + 1), image, label, answer)
    recorder.save(folder / "load.npz")
    return Record(folder / "load.npz")


def test_failures_are_counted_and_named(tmp_path: Path) -> None:
    record = record_of([(0, 3, says(3)), (1, 4, Answer(503)), (2, 5, Answer(0)), (3, 5, Answer(-1))], tmp_path)
    assert (record.requests, record.failed) == (4, 3)
    assert record.failures() == {"d1: 503": 1, "d1: 0": 1, "d1: -1": 1}


def test_an_answer_of_nan_is_a_failure(tmp_path: Path) -> None:
    nan = Answer(200, np.full((1, 10), np.nan, np.float32), "b1", "t", "1.0")
    assert record_of([(0, 3, nan)], tmp_path).failed == 1


def test_what_was_misread_at_build_time_is_misread_not_wrong(tmp_path: Path) -> None:
    record = record_of([(0, 3, says(3)), (1, 4, says(9)), (1, 4, says(9))], tmp_path)
    assert record.misread() == 2
    assert record.wrong({"b1": 1}) == 0
    assert record.wrong({"b1": 0}) == 1


def test_a_build_that_changes_its_mind_gives_wrong_answers(tmp_path: Path) -> None:
    record = record_of([(0, 3, says(3)), (0, 3, says(3)), (0, 3, says(7))], tmp_path)
    assert record.wrong({"b1": 450}) == 1


def test_a_build_nobody_measured_has_no_excuse(tmp_path: Path) -> None:
    assert record_of([(0, 3, says(7, build="stranger"))], tmp_path).wrong({"b1": 5}) == 1


def test_quantiles_are_of_the_window_asked_for(tmp_path: Path) -> None:
    record = record_of([(0, 3, says(3))] * 10, tmp_path)
    assert record.quantiles("d1", 2, 5).requests == 3
    assert record.quantiles("d1", 2, 5).p50_ms == pytest.approx(40)
    assert record.quantiles("d1", 90, 99).p50_ms is None
    assert record.quantiles("nobody", 0, 99).requests == 0


@pytest.mark.parametrize(
    ("changes", "killed", "expected"),
    [
        ({}, None, True),
        ({"failed_requests": 1}, None, False),
        ({"failed_requests": 1}, "gateway", True),
        ({"wrong_answers": 1}, None, False),
        ({"rolled_back": False}, None, False),
        ({"devices_on_target": 5}, None, False),
    ],
)
def test_the_demo_is_good_only_if_everything_is(changes: dict[str, object], killed: str | None, expected: bool) -> None:
    record = {"devices": 6, "devices_on_target": 6, "failed_requests": 0, "wrong_answers": 0, "rolled_back": True}
    assert good({**record, **changes}, killed=killed) is expected
