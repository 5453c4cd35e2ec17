"""The gate: what it measures, what it refuses, and that it names the figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_contract.building import Accuracy, BuildReport, Outcome
from covey_contract.wire import decode, encode
from covey_converters import metrics, parity
from covey_converters.metrics import Declared
from covey_converters.samples import Samples

LABELS = np.arange(100) % 10


def scores(right: int = 100) -> NDArray[np.float32]:
    """100 rows of 10 scores, of which the first `right` have their highest at the label."""
    rows = np.random.default_rng(0).random((100, 1, 10)).astype(np.float32)
    best = np.where(np.arange(100) < right, LABELS, (LABELS + 1) % 10)
    rows[np.arange(100), 0, best] = 5.0
    return rows


def judged(precision: str, build: NDArray[np.float32], *, labels: bool, budget: float = 0.01) -> list[str]:
    source, other = {"y": scores()}, {"y": build}
    compared = parity.compare(source, other)
    if not labels:
        return parity.objections(precision, compared, None)
    found = metrics.judge(
        Declared("classification"), source, other, Samples(arrays=dict(source), labels=LABELS), budget
    )
    assert found is not None
    return parity.objections(precision, compared, found.accuracy, found.outputs)


def test_the_same_answers_pass() -> None:
    for precision in parity.THRESHOLDS:
        assert judged(precision, scores(), labels=True) == []
        assert judged(precision, scores(), labels=False) == []


def test_errors_are_measured() -> None:
    source, build = np.zeros((2, 3)), np.array([[0.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    found = parity.compare({"y": source + 1}, {"y": build + 1})["y"]
    assert found.max_error == 1.0
    assert found.mean_error == pytest.approx(0.25)
    assert found.top1_agreement == 0.5


def test_a_drop_over_the_budget_names_its_figure() -> None:
    [line] = judged("int8", scores(right=97), labels=True)
    assert "falls by 0.0300 (1.0000 -> 0.9700 on 100 samples); the budget is 0.01" in line


def test_a_drop_of_exactly_the_budget_passes() -> None:
    assert judged("int8", scores(right=97), labels=True, budget=0.03) == []


def test_without_labels_agreement_decides() -> None:
    source = scores()
    source[np.arange(100), 0, (LABELS + 1) % 10] = 4.9
    build = source.copy()
    build[:10][np.arange(10), 0, (LABELS[:10] + 1) % 10] = 5.1
    [line] = parity.objections("int8", parity.compare({"y": source}, {"y": build}), None)
    assert "agrees with the source's top-1 on 90.0%" in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers(value: float) -> None:
    broken = scores()
    broken[3, 0, 2] = value
    assert "NaN or infinite" in " ".join(judged("fp32", broken, labels=True))
    assert "NaN or infinite" in " ".join(judged("fp32", broken, labels=False))


def test_a_report_of_a_broken_build_can_be_read_again() -> None:
    found = parity.compare({"y": scores()}, {"y": scores() * np.float32(np.nan)})
    report = BuildReport(target="tflite-int8", outcome=Outcome.REFUSED, parity=found)
    assert decode(BuildReport, encode(report)) == report


def test_another_shape() -> None:
    assert "another shape" in judged("fp32", scores()[:, :, :9], labels=False)[0]


def test_right_classes_by_other_numbers_are_not_the_same_model() -> None:
    """Accuracy alone would pass an FP32 build whose scores mean something else."""
    bent = np.exp(scores())
    assert any("cosine" in line for line in judged("fp32", bent.astype(np.float32), labels=True))


def test_rows_of_probabilities_agree_row_by_row() -> None:
    """A line of characters is as wrong as its wrong characters, not as its one highest score."""
    source = np.zeros((3, 1, 10, 5))
    source[..., 0] = 1.0
    build = source.copy()
    build[0, 0, 3] = [0, 1, 0, 0, 0]
    found = parity.compare({"y": source}, {"y": build})["y"]
    assert found.top1_agreement == pytest.approx(29 / 30)


def test_a_source_of_zeros() -> None:
    zeros = {"y": np.zeros((4, 3))}
    assert parity.compare(zeros, zeros)["y"].cosine == 1.0
    assert parity.compare(zeros, {"y": np.ones((4, 3))})["y"].cosine == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_drop_is_refused_exactly_when_it_is_over_the_budget(source: float, build: float, budget: float) -> None:
    accuracy = Accuracy(metric="m", source=source, build=build, samples=1, budget=budget)
    refused = bool(parity.objections("int8", {}, accuracy))
    assert refused == (source - build > budget + 1e-9)


def test_outputs_of_different_sizes_are_padded() -> None:
    stacked = parity.stack([{"y": np.ones((2, 3))}, {"y": np.ones((4, 3))}])["y"]
    assert stacked.shape == (2, 4, 3)
    assert stacked.sum() == 18
