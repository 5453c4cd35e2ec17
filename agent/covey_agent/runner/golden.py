"""Golden vectors: inputs and the outputs that the build gave on the machine that made it.

`golden.npz` holds arrays `in/NAME` and `out/NAME`, several samples stacked on a new first axis. A build that answers otherwise
here is not the build that was tested, whatever its digest says: a driver, a CPU feature or a runtime version differs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covey_agent.runner.errors import LoadError
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest, Tolerance
from covey_contract.reasons import Reason

# Where the manifest names none: rounding only. Integers must agree exactly.
DEFAULT_TOLERANCE = Tolerance(absolute=1e-3, relative=1e-3)
EXACT = Tolerance(absolute=0.0)

Sample = tuple[dict[str, Array], dict[str, Array]]


def read_golden(path: Path, manifest: Manifest) -> list[Sample]:
    """Each sample as (inputs, outputs) by callers' names; raises `LoadError` if the file does not fit the manifest."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LoadError(Reason.GOLDEN_MISMATCH, f"the golden vectors cannot be read: {error}") from error
    wanted = [f"in/{spec.name}" for spec in manifest.inputs] + [f"out/{spec.name}" for spec in manifest.outputs]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise LoadError(Reason.GOLDEN_MISMATCH, f"the golden vectors lack {', '.join(missing)}")
    counts = {len(arrays[name]) if arrays[name].ndim else 0 for name in wanted}
    if len(counts) != 1 or 0 in counts:
        raise LoadError(
            Reason.GOLDEN_MISMATCH, "the golden vectors have no samples, or not the same number for each tensor"
        )
    return [
        (
            {spec.name: arrays[f"in/{spec.name}"][index] for spec in manifest.inputs},
            {spec.name: arrays[f"out/{spec.name}"][index] for spec in manifest.outputs},
        )
        for index in range(counts.pop())
    ]


def mismatch(
    golden: Mapping[str, Array], outputs: Mapping[str, Array], tolerance: Mapping[str, Tolerance]
) -> str | None:
    """A sentence naming the first output that lies too far from the golden one, with the figures; None if none does."""
    for name, wanted in golden.items():
        got = outputs[name]
        if got.shape != wanted.shape:
            return f"output {name!r} has shape {got.shape}, the golden one {wanted.shape}"
        allowed = tolerance.get(name, DEFAULT_TOLERANCE if wanted.dtype.kind == "f" else EXACT)
        with np.errstate(invalid="ignore"):
            error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
            error = np.where(got == wanted, 0.0, error)  # equal infinities
            excess = error - (allowed.absolute + allowed.relative * np.abs(wanted.astype(np.float64)))
        if not (excess <= 0).all():  # written so that NaN fails
            worst = int(np.nanargmax(excess)) if not np.isnan(excess).all() else 0
            return (
                f"output {name!r} is {got.flat[worst]} where the golden one is {wanted.flat[worst]} "
                f"(allowed: {allowed.absolute:g} + {allowed.relative:g} of it)"
            )
    return None
