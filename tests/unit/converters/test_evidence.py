"""How much samples can say: the bound against the exact distribution, against draws with losses that come together, and in the gate."""

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


def single(lost: int, trials: int, gained: int = 0) -> Changed:
    """One answer a sample; what was gained was gained elsewhere."""
    gone = [index < lost for index in range(trials)]
    return Changed.of_answers(gone, [lost <= index < lost + gained for index in range(trials)])


def at_most(lost: int, trials: int, share: float) -> float:
    return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(lost + 1))


@settings(deadline=None)
@given(st.integers(2, 300), st.data())
def test_under_the_bound_so_few_losses_come_once_in_twenty_times(trials: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, trials - 1))
    assert at_most(lost, trials, evidence.upper_bound(single(lost, trials))) <= 0.05 + 1e-6


@settings(deadline=None)
@given(st.integers(4, 300), st.data())
def test_more_losses_never_bound_less(trials: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, trials // 2 - 1))
    one, more = (evidence.upper_bound(single(count, trials)) for count in (lost, lost + 1))
    assert lost / trials <= one <= more + 1e-9 <= 1 + 1e-9


@given(budgets)
def test_the_fewest_answers_are_exactly_enough(budget: float) -> None:
    count = evidence.needed(budget)
    assert at_most(0, count, 2 * budget) <= 0.05 + 1e-9
    assert count == 1 or at_most(0, count - 1, 2 * budget) > 0.05 - 1e-9
    assert evidence.too_few(single(0, 2 * count + 10), budget) is None
    if count > 2:
        assert evidence.too_few(single(0, count - 1), budget) is not None


def test_losses_that_come_together_are_bounded_like_what_they_are() -> None:
    """The promise itself, on drawn samples: of 60 pages with 6 regions each, every page loses all of them or none. A bound below the true
    loss should come about once in twenty draws; counted region by region it comes more than twice as often as counted by page."""
    generator = np.random.default_rng(0)
    by_page = by_region = 0
    for _ in range(400):
        lost = np.where(generator.random(60) < 0.08, 6, 0).tolist()
        changed = Changed(tuple(lost), (0,) * 60, (6,) * 60)
        by_page += evidence.upper_bound(changed) < 0.08
        by_region += evidence.upper_bound(single(sum(lost), 360)) < 0.08
    assert by_page / 400 < 0.09
    assert by_region / 400 > 2 * by_page / 400


def test_what_was_measured_once() -> None:
    """The build that passed on 48 pages and lost twice as much as allowed on 48 others."""
    pages = (5,) * 41 + (4,) * 7
    assert sum(pages) == 233
    seen = Changed((1,) * 4 + (0,) * 44, (0,) * 48, pages)
    assert evidence.objection(seen, 0.03) is not None


def test_gains_make_losses_less_certain() -> None:
    assert evidence.upper_bound(single(10, 450, gained=6)) > evidence.upper_bound(single(4, 450))
    assert evidence.objection(single(3, 450, gained=5), 0.01) is None


def test_the_gate_names_what_is_not_borne_out() -> None:
    labels = np.arange(60) % 3
    right = np.eye(3)[labels][:, np.newaxis]
    three_wrong = right.copy()
    three_wrong[:3, 0] = np.roll(three_wrong[:3, 0], 1, axis=-1)
    found = metrics.judge(
        metrics.parse("classification"), {"y": right}, {"y": three_wrong}, Samples({"x": right}, labels=labels), 0.05
    )
    assert found is not None
    assert found.changed == single(3, 60)
    [line] = parity.objections("int8", {}, found.accuracy, found.outputs, found.changed)
    assert line.endswith("may be (95 % confidence), which is more than twice the budget of 0.05")
    # The same share of ten times the samples is borne out.
    assert evidence.objection(single(30, 600), 0.05) is None


def test_nothing_to_count_says_nothing() -> None:
    assert evidence.upper_bound(Changed((0,), (0,), (0,))) == pytest.approx(1)
