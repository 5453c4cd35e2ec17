"""Regions, read lines and decisions: what each metric counts, and the map that cosine let pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_converters import metrics, parity
from covey_converters.errors import BadInputError
from covey_converters.evidence import Changed
from covey_converters.metrics import Judged
from covey_converters.metrics.characters import edits, read
from covey_converters.metrics.regions import regions
from covey_converters.samples import Samples

Array = NDArray[np.float64]


def judged(text: str, source: Array, build: Array, budget: float = 0.02, *, synthetic: bool = False) -> Judged | None:
    of = Samples({"x": np.zeros((len(source), 1), np.float32)}, synthetic=synthetic)
    return metrics.judge(metrics.parse(text), {"out": source}, {"out": build}, of, budget)


def page(count: int = 1) -> Array:
    """A map with two lines of text, (count, 1, 1, 64, 64)."""
    found = np.zeros((count, 1, 1, 64, 64))
    found[..., 4:12, 4:40] = found[..., 30:40, 4:40] = 0.9
    return found


def test_a_lost_region_is_a_lost_region_whatever_the_cosine() -> None:
    """What passed unseen: many maps that are nearly the same, and one of sixteen regions too faint to be one."""
    source = page(40)
    build = source.copy()
    build[:5, ..., 30:40, 4:40] = 0.29
    by_parity = parity.compare({"out": source}, {"out": build})["out"]
    assert by_parity.cosine > 0.97
    found = judged("regions:threshold=0.3", source, build)
    assert found is not None
    assert found.accuracy.build == pytest.approx(75 / 80)
    assert found.changed == Changed((1,) * 5 + (0,) * 35, (0,) * 40, (2,) * 40)
    lines = parity.objections("int8", {"out": by_parity}, found.accuracy, found.outputs, found.changed)
    assert any("matched-region recall of out falls by 0.0625" in line for line in lines)


def test_a_map_of_probabilities_is_decided_alike_also_without_a_metric() -> None:
    source = page(40)
    build = source.copy()
    build[:8, ..., 30:40, 4:40] = 0.45
    compared = parity.compare({"out": source}, {"out": build})
    assert compared["out"].decisions is not None
    assert any("says yes and no as the source does" in line for line in parity.objections("int8", compared, None))
    assert not parity.objections("int8", parity.compare({"out": source}, {"out": source * 0.99}), None)


def test_regions_that_the_build_makes_up_count() -> None:
    build = page(20)
    build[..., 50:60, 4:40] = 0.9
    found = judged("regions", page(20), build)
    assert found is not None
    assert found.accuracy.drop == 0
    assert found.objections == ("20 of 60 regions are not the source's; the budget is 0.02",)


def test_specks_are_no_regions_and_corners_do_not_join() -> None:
    scores = np.zeros((1, 20, 20))
    scores[0, :5, :5] = scores[0, 5:10, 5:10] = scores[0, 15, 15] = 1.0
    assert len(regions(scores, 0.5, 10)) == 2
    assert regions(scores, 0.5, 10).boxes.tolist() == [[0, 0, 5, 5], [5, 5, 10, 10]]


def test_lines_are_read_by_ctc() -> None:
    rows = np.eye(4)[[0, 1, 1, 0, 1, 2, 3, 3]]
    assert read(rows, 0) == [1, 1, 2, 3]
    assert read(np.eye(4)[[3, 1, 1, 3]], -1) == [1]
    source, build = np.eye(4)[[[0, 1, 0, 2, 2, 3]] * 10], np.eye(4)[[[0, 1, 0, 2, 2, 3]] * 9 + [[0, 1, 0, 0, 2, 2]]]
    found = judged("characters", source[:, np.newaxis], build[:, np.newaxis])
    assert found is not None
    assert found.accuracy.build == pytest.approx(1 - 1 / 30)
    assert found.changed == Changed((0,) * 9 + (1,), (0,) * 10, (3,) * 10)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_edits_are_a_distance(one: list[int], other: list[int]) -> None:
    assert edits(one, other) == edits(other, one)
    assert (edits(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= edits(one, other) <= max(len(one), len(other))


def test_decisions_are_counted_against_their_threshold() -> None:
    source = np.array([0.9, 0.8, 0.1, 0.2]).reshape(4, 1, 1)
    build = np.array([0.9, 0.4, 0.1, 0.2]).reshape(4, 1, 1)
    found = judged("decisions:threshold=0.5", source, build)
    assert found is not None
    assert found.accuracy.build == pytest.approx(2 / 3)
    assert found.changed == Changed.of_answers([False, True, False, False], [False] * 4)
    same = judged("decisions:threshold=0.3", source, build)
    assert same is not None
    assert same.accuracy.build == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("regions:threshold=2", "threshold='2' is not between 0 and 1"),
        ("regions:smallest=x", "smallest='x' is not a whole number"),
        ("regions:output=no", "there is no output 'no'"),
        ("characters:blank=70", "is no row of scores a step with class 70"),
        ("decisions:output=no", "there is no output 'no'"),
        ("decisions:threshold=0.95", "nothing above 0.95"),
        ("regions:smallest=9999", "no region above 0.3"),
    ],
)
def test_what_does_not_fit_says_so(text: str, line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        judged(text, page(), page())


@pytest.mark.parametrize("text", ["regions", "characters", "decisions"])
def test_random_inputs_without_an_answer_are_not_judged(text: str) -> None:
    nothing = np.eye(4)[[[[0, 0, 0]]] * 2] if text == "characters" else np.zeros((2, 1, 8, 8))
    assert judged(text, nothing, nothing, synthetic=True) is None


@pytest.mark.parametrize("text", ["regions", "decisions"])
def test_a_build_of_another_shape_has_lost_everything(text: str) -> None:
    found = judged(text, page(), page()[..., :32])
    assert found is not None
    assert found.accuracy.build == 0
