"""Counts of inputs and outputs: they add up, and what contradicts itself is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.drift import (
    MAX_CLASSES,
    MAX_SAMPLED,
    SCORE_BINS,
    OutputCounts,
    OutputReference,
    Reference,
    merge,
    stride,
)
from covey_contract.messages import BuildWindow

classified = st.lists(st.tuples(st.integers(0, MAX_CLASSES - 1), st.integers(0, SCORE_BINS - 1)), max_size=30)


def counted(rows: list[tuple[int, int]]) -> OutputCounts:
    classes: dict[int, int] = {}
    scores = [0] * SCORE_BINS
    for index, score in rows:
        classes[index] = classes.get(index, 0) + 1
        scores[score] += 1
    return OutputCounts(count=len(rows), classes=classes, scores=tuple(scores) if rows else ())


@given(one=classified, other=classified)
def test_counts_of_two_windows_are_those_of_both_together(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    assert merge([counted(one), counted(other)]) == counted(one + other)


@given(rows=classified)
def test_counts_survive_the_wire(rows: list[tuple[int, int]]) -> None:
    counts = counted(rows)
    window = BuildWindow(model="digits", version="1.0", build="ab" * 32, outputs={"logits": counts})
    assert msgspec.json.decode(msgspec.json.encode(window), type=BuildWindow) == window


def test_other_bins_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="bins cannot be added"):
        merge([OutputCounts(count=1, values=(1, 0)), OutputCounts(count=1, values=(0, 0, 1))])


@given(size=st.integers(0, 10**7))
def test_no_more_elements_are_counted_than_the_limit(size: int) -> None:
    assert len(range(0, size, stride(size))) <= MAX_SAMPLED


@pytest.mark.parametrize(
    "bad",
    [
        {"count": 2, "classes": {"3": 1}},
        {"count": 1, "classes": {str(MAX_CLASSES): 1}},
        {"count": 1, "classes": {"-1": 1}},
        {"count": 1, "classes": {"cat": 1}},
        {"count": 1, "scores": [1]},
        {"count": 1, "scores": [1] * SCORE_BINS},
        {"count": 1, "values": [1] + [0] * 33},
        {"count": -1},
    ],
)
def test_counts_that_contradict_themselves_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(bad), type=OutputCounts)


@pytest.mark.parametrize(
    "bad",
    [
        {"edges": [1.0, 1.0], "counts": {}},
        {"edges": [2.0, 1.0], "counts": {}},
        {"edges": [float(i) for i in range(33)], "counts": {}},
        {"edges": [0.0, 1.0], "counts": {"count": 1, "values": [1, 0]}},
    ],
)
def test_a_reference_whose_bins_make_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"kind": "values", **bad}), type=OutputReference)


def test_a_reference_is_bounded() -> None:
    many = {f"out{i}": {"kind": "logits", "counts": {}} for i in range(9)}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"samples": 1, "outputs": many}, Reference)
