"""The histogram: exact counts, known error, merging that loses nothing, and refusals."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.errors import HistogramError
from covey_contract.histogram import Histogram, Recorder, merge

values = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=200)
BUCKET = 2 ** (2**-4)  # the width of a bucket at scale 4


def recorded(numbers: list[float], scale: int = 4) -> Histogram:
    recorder = Recorder(scale)
    for number in numbers:
        recorder.record(number)
    return recorder.snapshot()


@given(numbers=values, q=st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_one_bucket_of_the_true_one(numbers: list[float], q: float) -> None:
    rank = max(1, math.ceil(q * len(numbers)))
    true = sorted(numbers)[rank - 1]
    found = recorded(numbers).quantile(q)
    assert true / BUCKET * (1 - 1e-9) <= found <= true * BUCKET * (1 + 1e-9)


@given(first=values, second=values, scale=st.integers(1, 6))
def test_merging_is_recording_everything_in_one(first: list[float], second: list[float], scale: int) -> None:
    merged = merge([recorded(first), recorded(second, scale)])
    whole = recorded(first + second, min(4, scale))
    assert (merged.count, merged.min, merged.max) == (whole.count, whole.min, whole.max)
    assert (merged.scale, merged.offset, merged.counts) == (whole.scale, whole.offset, whole.counts)
    assert merged.sum == pytest.approx(whole.sum)


@given(numbers=values)
def test_count_above_the_extremes(numbers: list[float]) -> None:
    histogram = recorded(numbers)
    assert histogram.count_above(max(numbers) * BUCKET * 1.001) == pytest.approx(0)
    assert histogram.count_above(min(numbers) / BUCKET / 1.001) == pytest.approx(len(numbers))


def test_an_empty_histogram_has_no_quantile() -> None:
    assert math.isnan(Histogram().quantile(0.99))
    assert merge([]) == Histogram()


def test_zero_and_negative_values_count_as_zero() -> None:
    histogram = recorded([0.0, -1.0, 1.0])
    assert histogram.zero_count == 2
    assert histogram.quantile(0.5) == 0.0


def test_values_too_far_apart_make_it_coarser_instead_of_larger() -> None:
    histogram = recorded([1e-300, 1.0, 1e300])
    assert histogram.count == 3
    assert histogram.scale < 4
    assert len(histogram.counts) <= 1024


def test_a_quantile_outside_zero_to_one_is_an_error() -> None:
    with pytest.raises(HistogramError):
        recorded([1.0]).quantile(1.5)


@pytest.mark.parametrize(
    "text",
    [
        '{"count":5,"counts":[1,1]}',
        '{"count":1,"counts":[1],"sum":-1}',
        '{"count":2,"counts":[3],"zero_count":-1}',
        '{"scale":99}',
        f'{{"count":2000,"counts":[{",".join(["1"] * 2000)}]}}',
    ],
)
def test_histograms_that_contradict_themselves_are_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Histogram)


@given(offset=st.integers(-(1 << 30), 1 << 30), scale=st.integers(-10, 20), q=st.floats(0, 1))
def test_hostile_offsets_never_overflow(offset: int, scale: int, q: float) -> None:
    histogram = Histogram(scale=scale, count=1, sum=1.0, min=0.5, max=2.0, offset=offset, counts=(1,))
    assert 0.5 <= histogram.quantile(q) <= 2.0
    assert 0 <= merge([histogram]).count_above(1.0) <= 1
