"""Errors column by column: what hides in a tensor of mixed scales, and what is no error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_converters import parity
from covey_converters.columns import worst_column


def detector(samples: int = 30, anchors: int = 200) -> NDArray[np.float64]:
    """(n, 1, anchors, 6): boxes of 0 to 320 beside two scores, of which two anchors a sample are high."""
    generator = np.random.default_rng(1)
    output = np.empty((samples, 1, anchors, 6))
    output[..., :4] = generator.random((samples, 1, anchors, 4)) * 320
    output[..., 4:] = generator.random((samples, 1, anchors, 2)) * 0.02
    output[np.arange(samples), 0, 7, 4] = 0.9
    output[np.arange(samples), 0, 11, 5] = 0.6
    return output


def one_scale(output: NDArray[np.float64]) -> NDArray[np.float64]:
    """INT8 with one scale for all columns, as a runtime quantises a tensor."""
    step = output.max() / 255
    quantised: NDArray[np.float64] = np.round(output / step) * step
    return quantised


def own_scales(output: NDArray[np.float64]) -> NDArray[np.float64]:
    step = output.max(axis=(0, 1, 2)) / 255
    quantised: NDArray[np.float64] = np.round(output / step) * step
    return quantised


def test_the_detector_trap() -> None:
    """Cosine is perfect, every detection is lost."""
    source = detector()
    compared = parity.compare({"out": source}, {"out": one_scale(source)})
    assert compared["out"].cosine > 0.9999
    [line] = parity.objections("int8", compared, None)
    assert "differs in column 5 of axis 2" in line
    assert "of the column's range; at most 15% is allowed" in line


def test_the_detector_trap_with_columns_before_anchors() -> None:
    source = detector()
    turned = [np.moveaxis(output, 3, 2) for output in (source, one_scale(source))]
    compared = parity.compare({"out": turned[0]}, {"out": turned[1]})
    assert compared["out"].column == (1, 5)
    assert parity.objections("int8", compared, None)


def test_columns_with_a_scale_of_their_own_pass() -> None:
    source = detector()
    compared = parity.compare({"out": source}, {"out": own_scales(source)})
    assert parity.objections("int8", compared, None) == []


def test_a_class_that_never_fires_may_be_lost() -> None:
    source = detector()
    source[..., 5] = np.random.default_rng(2).random(source.shape[:3]) * 1e-4
    build = own_scales(source)
    build[..., 5] = 0.0
    assert parity.objections("int8", parity.compare({"out": source}, {"out": build}), None) == []


def test_class_scores_that_hardly_move_are_of_one_kind_with_the_others() -> None:
    source = np.random.default_rng(3).normal(size=(20, 1, 50))
    source[..., 13] = 1.0 + 1e-3 * source[..., 13]
    found = worst_column(source, source + 0.02)
    assert found is not None
    assert found.error < 0.1


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1), (4, 1, 0)])
def test_outputs_without_columns(shape: tuple[int, ...]) -> None:
    assert worst_column(np.zeros(shape), np.zeros(shape)) is None


def test_zeros_that_do_not_stay_zeros() -> None:
    source = np.zeros((4, 1, 3))
    found = worst_column(source, source + 1)
    assert found is not None
    assert found.error == pytest.approx(20.0)  # as probabilities that say nothing


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1000), st.floats(0, 0.2))
def test_an_error_is_relative_to_its_column(seed: int, scale: float, error: float) -> None:
    """Whatever a column's scale, the same part of its range is the same error."""
    source = np.random.default_rng(seed).normal(size=(8, 1, 300, 3))
    source[..., 1] *= scale
    ranges = source.max(axis=(0, 1, 2)) - source.min(axis=(0, 1, 2))
    found = worst_column(source, source + error * ranges)
    assert found is not None
    assert found.error == pytest.approx(error)
