"""Golden vectors: a few inputs with the answers this build gave here, and how far another machine's answers may lie from them.

The same build answers slightly differently on another kernel, thread count or architecture. The tolerance is taken from what
could be seen of that here, with a margin: the difference between two kernels or thread counts, and for INT8 the step of the
quantised output and the quantisation error itself, because kernels round at other places (x86 and ARM differ by about one step).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covey_contract.manifest import Tolerance
from covey_converters.deterministic import write_npz

GOLDEN_FILE = "golden.npz"
GOLDEN_SAMPLES = 6

# How many times the observed difference between kernels is allowed.
KERNEL_MARGIN = 4.0
# Rounding of one float operation, relative to the largest output, that accumulates over a network.
FLOAT_FLOOR = {"fp32": 2e-5, "fp16": 1e-2, "int8": 2e-5}
STEPS = 3.0


def tolerance(
    precision: str,
    outputs: NDArray[np.generic],
    other_kernel: NDArray[np.generic],
    source: NDArray[np.generic],
    step: float | None,
) -> Tolerance:
    """For one output: `outputs` by the kernels that devices use, `other_kernel` by another kernel or thread count, `source` by
    the source model; all (n, *shape). `step` is the output's quantisation step, if it has one."""
    ours = outputs.astype(np.float64)
    scale = float(np.abs(ours).max(initial=0.0))
    absolute = FLOAT_FLOOR[precision] * max(scale, 1e-3)
    absolute = max(absolute, KERNEL_MARGIN * float(np.abs(ours - other_kernel.astype(np.float64)).max(initial=0.0)))
    if precision == "int8":
        quantisation = np.abs(ours - source.astype(np.float64))
        absolute = max(absolute, STEPS * (step or 0.0), float(quantisation.max(initial=0.0)))
    return Tolerance(absolute=_rounded(absolute), relative=1e-4)


def _rounded(value: float) -> float:
    """Two digits, upwards: nobody should read more into it."""
    digits = 10.0 ** (np.floor(np.log10(value)) - 1) if value > 0 else 1.0
    return float(f"{np.ceil(value / digits) * digits:.2g}")


def write_golden(
    path: Path, inputs: Mapping[str, NDArray[np.generic]], outputs: Mapping[str, NDArray[np.generic]]
) -> None:
    """Arrays `in/NAME` and `out/NAME`, samples stacked on a new first axis: (n, *tensor shape)."""
    arrays = {f"in/{name}": array for name, array in inputs.items()}
    arrays |= {f"out/{name}": array for name, array in outputs.items()}
    write_npz(path, arrays)
