"""What the runner counts of inputs and outputs, and what a window of it takes on the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.core.telemetry import records
from covey_agent.gateway.tally import Tally
from covey_agent.runner.counting import Counter
from covey_agent.runner.protocol import InputFlag, Result
from covey_contract.drift import (
    MAX_CLASSES,
    InputCounts,
    InputReference,
    OutputCounts,
    OutputKind,
    OutputReference,
    Reference,
)
from covey_contract.messages import BuildWindow, Resources, Telemetry
from covey_contract.wire import MAX_MESSAGE_BYTES, encode

Flag = InputFlag
EMPTY = OutputReference(kind=OutputKind.LOGITS, counts=OutputCounts())


def flags(array: Any, low: float = 0.0, high: float = 1.0) -> int:
    counter = Counter(Reference(samples=1, inputs={"x": InputReference(low=low, high=high)}))
    return counter.inputs({"x": np.asarray(array)})[0]


@pytest.mark.parametrize(
    ("array", "wrong"),
    [
        ([0.0, 0.5, 1.0], 0),
        ([0.0, np.nan, 1.0], Flag.NAN),
        ([np.nan] * 3, Flag.NAN),
        ([0.5] * 3, Flag.CONSTANT),
        ([7.0] * 3, Flag.CONSTANT | Flag.OUT_OF_RANGE),
        ([0.0, 1.1], Flag.OUT_OF_RANGE),
        ([-0.1, 1.0], Flag.OUT_OF_RANGE),
        ([0.0, np.inf], Flag.OUT_OF_RANGE),
        ([0.5], 0),  # a single number is not "constant"
        ([], 0),
        ([True, False], 0),
        ([True, True], Flag.CONSTANT),
    ],
)
def test_what_is_wrong_with_an_input(array: list[float], wrong: int) -> None:
    assert flags(array) == wrong
    if array and array != [0.5]:  # and in a large one
        assert flags(np.repeat(np.asarray(array), 40_000).reshape(-1, 200)) == wrong


def test_an_integer_input() -> None:
    assert flags(np.arange(256, dtype=np.uint8), 0, 255) == 0
    assert flags(np.zeros((480, 640), np.uint8), 0, 255) == Flag.CONSTANT


@pytest.mark.filterwarnings("error")
def test_infinite_scores_are_counted_as_no_probability() -> None:
    counter = Counter(Reference(samples=1, outputs={"y": EMPTY}))
    (seen,) = counter.outputs({"y": np.array([[1.0, np.inf], [-np.inf, -np.inf], [-np.inf, 2.0]], np.float32)})
    assert seen.classes == [1, 0, 1]
    assert seen.scores == [0, 0, 19]


def test_a_build_without_a_reference_counts_nothing() -> None:
    counter = Counter(None)
    result = Result(id=1, compute_s=0.0, outputs=(), outputs_seen=counter.outputs({"y": np.zeros(3)}))
    assert counter.inputs({"x": np.zeros(3)}) == ()
    tally = Tally(None)
    tally.add(result)
    assert tally.take() == ({}, {})


def test_a_window_begins_anew_when_it_is_taken() -> None:
    reference = Reference(samples=1, outputs={"y": EMPTY, "z": EMPTY}, inputs={"x": InputReference(low=0.0, high=1.0)})
    counter, tally = Counter(reference), Tally(reference)
    outputs = {"y": np.array([[0.0, 1.0]], np.float32), "z": np.zeros((0, 2), np.float32)}
    for array in ([0.0, 1.0], [1.0, 1.0], [2.0, np.nan]):
        inputs = {"x": np.array(array)}
        tally.add(Result(1, 0.0, (), counter.outputs(outputs), counter.inputs(inputs)))
    seen_outputs, seen_inputs = tally.take()
    assert set(seen_outputs) == {"y"}  # of z there was nothing
    assert (seen_outputs["y"].count, seen_outputs["y"].classes) == (3, {1: 3})
    assert seen_inputs == {"x": InputCounts(count=3, nan=1, constant=1)}
    assert tally.take() == ({}, {})


# --- records on the wire --------------------------------------------------------------------------------------------


def large_window(build: int, outputs: int) -> BuildWindow:
    classes = {index: 10**6 + index for index in range(MAX_CLASSES)}
    counts = OutputCounts(count=sum(classes.values()), classes=classes)
    return BuildWindow(
        model="m", version="1", build=f"{build:064x}", ok=1, outputs={f"y{n}": counts for n in range(outputs)}
    )


def telemetry(*windows: BuildWindow) -> Telemetry:
    return Telemetry(seq=0, boot_id="b" * 256, start_ms=1, end_ms=2, windows=windows, resources=Resources())


def test_windows_are_cut_into_records_that_the_wire_takes() -> None:
    windows = tuple(large_window(number, 2) for number in range(10))
    cut = list(records(telemetry(*windows)))
    assert len(cut) > 1
    assert tuple(window for record in cut for window in record.windows) == windows
    assert all(len(encode(msgspec.structs.replace(record, seq=1 << 50))) <= MAX_MESSAGE_BYTES for record in cut)


def test_no_windows_are_one_record() -> None:
    assert list(records(telemetry())) == [telemetry()]


def test_of_a_window_that_is_too_large_by_itself_the_counts_of_some_outputs_go() -> None:
    window = large_window(1, 8)
    (cut,) = records(telemetry(window), limit=60_000)
    (left,) = cut.windows
    assert 0 < len(left.outputs) < 8
    assert left.ok == 1
    assert len(encode(cut)) <= 60_000
