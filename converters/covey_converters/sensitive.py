"""Which layers suffer most from INT8: judged one by one, by quantising what a layer gives, on a few samples, to its minimum and maximum.

A layer whose channels have very different ranges loses the narrow ones, and a tensor of mixed scales its small values. A recipe
that keeps such layers in float costs a little speed. Pure; a runtime hands in what its layers give.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from covey_converters.columns import worst_column

# At most this share of all layers is kept in float, and none that loses less than this part of a column's range.
_SHARE = 0.1
_FLOOR = 0.02
SAMPLES = 4  # enough to see a layer's ranges; every layer's values are held at once
_LEVELS = 255


def sensitive(layers: Iterable[tuple[str, NDArray[np.generic]]]) -> list[str]:
    """The names of the layers to keep, the worst first; each with its values (samples, 1, channels, …)."""
    errors = [(name, quantisation_error(values)) for name, values in layers if values.dtype.kind == "f" and values.size]
    worst = sorted((one for one in errors if one[1] >= _FLOOR), key=lambda one: -one[1])
    return [name for name, _ in worst[: max(1, int(len(errors) * _SHARE))]]


def quantisation_error(values: NDArray[np.generic]) -> float:
    """Of the worst column, relative to its range, after rounding to 256 levels between minimum and maximum."""
    plain = values.astype(np.float64)
    low, high = min(float(plain.min()), 0.0), max(float(plain.max()), 0.0)
    if not np.isfinite([low, high]).all() or low == high:
        return 0.0
    step = (high - low) / _LEVELS
    found = worst_column(plain, np.round(plain / step) * step)
    return 0.0 if found is None else found.error
