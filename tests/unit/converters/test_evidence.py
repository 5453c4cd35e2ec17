"""How much samples can say: the bound against the exact distribution, and what the gate makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_converters import evidence, metrics, parity
from covey_converters.evidence import Changed
from covey_converters.samples import Samples

budgets = st.floats(0.005, 0.2)


def at_most(lost: int, trials: int, share: float) -> float:
    return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(lost + 1))


@given(st.integers(1, 300), st.data())
def test_the_bound_is_where_so_few_losses_come_once_in_twenty_times(trials: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, trials - 1))
    bound = evidence.upper_bound(Changed(lost, 0, trials))
    assert at_most(lost, trials, bound) == pytest.approx(0.05, abs=1e-6)


@given(st.integers(1, 500), st.integers(0, 40), st.integers(0, 40))
def test_more_losses_never_bound_less(trials: int, lost: int, gained: int) -> None:
    lost, gained = min(lost, trials // 2), min(gained, trials // 2)
    one, more = (evidence.upper_bound(Changed(count, gained, trials)) for count in (lost, lost + 1))
    assert one <= more + 1e-9
    assert (lost - gained) / trials <= one <= 1


@given(budgets)
def test_the_fewest_samples_are_exactly_enough(budget: float) -> None:
    count = evidence.needed(budget)
    assert evidence.upper_bound(Changed(0, 0, count)) <= 2 * budget + 1e-9
    assert evidence.too_few(count, budget) is None
    if count > 1:
        assert evidence.upper_bound(Changed(0, 0, count - 1)) > 2 * budget - 1e-9
        assert evidence.too_few(count - 1, budget) is not None


@settings(deadline=None)
@given(budgets, st.integers(20, 400))
def test_what_would_lose_three_budgets_seldom_passes(budget: float, trials: int) -> None:
    """The promise itself, by the exact distribution: losing three times the budget is let through less than once in twenty times, unless
    the samples are so few that not one was lost, which the report notes."""
    passing = max(
        (
            lost
            for lost in range(trials + 1)
            if lost / trials <= budget + 1e-9 and evidence.objection(Changed(lost, 0, trials), budget) is None
        ),
        default=0,
    )
    if evidence.too_few(trials, budget) is None:
        assert at_most(passing, trials, min(3 * budget, 1.0)) < 0.05


def test_the_gate_counts_losses_and_gains() -> None:
    labels = np.arange(60) % 3
    right = np.eye(3)[labels][:, np.newaxis]
    three_wrong = right.copy()
    three_wrong[:3, 0] = np.roll(three_wrong[:3, 0], 1, axis=-1)
    found = metrics.judge(
        metrics.parse("classification"), {"y": right}, {"y": three_wrong}, Samples({"x": right}, labels=labels), 0.05
    )
    assert found is not None
    assert found.changed == Changed(3, 0, 60)
    [line] = parity.objections("int8", {}, found.accuracy, found.outputs, found.changed)
    assert "3 of 60 lost: up to 12.4 % may be" in line
    # The same share of ten times the samples is borne out.
    assert evidence.objection(Changed(30, 0, 600), 0.05) is None
