"""The pace: what may go out in a time, whatever the looks and the clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.core.pace import BURST_S, Meter, Rate, allowance, rate_of, refill, spend
from covey_server.core.spec import ByteRate, Growth, Pace


@given(
    st.floats(0.5, 6000),
    st.lists(st.integers(0, 120_000), min_size=1, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_never_more_than_the_rate_and_one_burst(per_minute: float, pauses_ms: list[int], greedy: list[bool]) -> None:
    rate, meter, now_ms, sent = Rate(per_minute), Meter(), 0, 0
    for pause_ms, takes_all in zip(pauses_ms, greedy, strict=False):
        now_ms += pause_ms
        meter = refill(meter, rate, now_ms)
        allowed = allowance(meter, rate, 0)
        assert allowed is not None
        taken = allowed if takes_all else allowed // 2
        meter, sent = spend(meter, taken, 0), sent + taken
        assert sent <= per_minute * now_ms / 60_000 + max(per_minute / 60 * BURST_S, 1) + 1e-6
    assert meter.issued == sent


@given(st.integers(1, 10**9), st.integers(1, 10**10), st.lists(st.integers(0, 600_000), min_size=1, max_size=40))
def test_builds_go_out_no_faster_than_the_bandwidth_and_one_build(per_s: int, size: int, pauses_ms: list[int]) -> None:
    rate, meter, now_ms, sent = Rate(None, per_s), Meter(), 0, 0
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        meter = refill(meter, rate, now_ms)
        allowed = allowance(meter, rate, size)
        assert allowed is not None
        meter, sent = spend(meter, allowed, allowed * size), sent + allowed * size
        assert sent <= per_s * (now_ms / 1000 + BURST_S) + size


def test_a_slow_link_gets_one_large_build_after_the_other() -> None:
    rate, meter, sent = Rate(None, 1000), Meter(), []
    for second in range(400):
        meter = refill(meter, rate, second * 1000)
        if allowed := allowance(meter, rate, 100_000):
            meter = spend(meter, allowed, allowed * 100_000)
            sent.append(second)
    assert sent == [0, 96, 196, 296, 396]


def test_a_clock_that_is_set_back_fills_nothing_and_one_set_forward_no_more_than_a_burst() -> None:
    rate = Rate(60.0)
    empty = Meter(at_ms=1_000_000)
    assert allowance(refill(empty, rate, 0), rate, 0) == 0
    assert allowance(refill(empty, rate, 10**12), rate, 0) == 5


def test_without_limits_any_number_goes_out() -> None:
    assert allowance(refill(Meter(), Rate(), 0), Rate(), 10**9) is None


@pytest.mark.parametrize(("count", "succeeded", "notified"), [("succeeded", 20, 0), ("notified", 0, 20)])
def test_the_rate_grows_with_what_the_file_counts(count: str, succeeded: int, notified: int) -> None:
    growth = Growth(per=10, at_most=1000, factor=1.5, count=count)  # type: ignore[arg-type]  # drawn from the literal's values
    pace = Pace(per_minute=10, growth=growth, bandwidth=ByteRate(7))
    assert rate_of(pace, succeeded, notified) == Rate(22.5, 7)
    assert rate_of(pace, 0, 0) == Rate(10, 7)
    assert rate_of(pace, 10**8, 10**8) == Rate(1000, 7)
