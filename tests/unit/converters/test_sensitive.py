"""Which layers are kept in float: those that lose most when their values are rounded to INT8."""

from __future__ import annotations

import numpy as np
import pytest

from covey_converters.sensitive import quantisation_error, sensitive

EVEN = np.random.default_rng(0).normal(size=(4, 1, 8, 5, 5))


def uneven(times: float = 300) -> np.ndarray:
    """One channel is so many times as wide as the others."""
    values = EVEN.copy()
    values[:, :, 3] *= times
    return values


def test_a_layer_with_uneven_channels_is_sensitive() -> None:
    assert quantisation_error(EVEN) < 0.01
    assert quantisation_error(uneven()) > 0.05
    assert sensitive([("even", EVEN), ("uneven", uneven())]) == ["uneven"]


def test_the_worst_come_first_and_few_are_kept() -> None:
    layers = [(f"layer{number}", EVEN) for number in range(20)]
    layers[4], layers[7], layers[9] = ("bad", uneven(30)), ("worse", uneven(300)), ("fair", uneven(10))
    assert sensitive(layers) == ["worse", "bad"]


@pytest.mark.parametrize("values", [np.zeros((4, 1, 3)), np.full((4, 1, 3), np.inf), np.zeros((4, 0))])
def test_values_that_say_nothing(values: np.ndarray) -> None:
    assert sensitive([("layer", values)]) == []


def test_whole_numbers_are_not_quantised() -> None:
    assert sensitive([("shape", np.array([[1, 300, 90_000]]))]) == []
