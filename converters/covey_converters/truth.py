"""What the source answers on the evaluation samples, in ONNX Runtime FP32: the truth that every build is compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covey_converters import metrics, parity
from covey_converters.backend import Array, Source
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.deterministic import write_npz
from covey_converters.errors import BadInputError
from covey_converters.metrics import Declared
from covey_converters.samples import Samples, load_samples, random_samples

RANDOM_SAMPLES = 32


@dataclass(frozen=True)
class Reference:
    """The evaluation samples, and what the source answers on them in ONNX Runtime FP32: {name: (n, *shape)}."""

    samples: Samples
    outputs: dict[str, Array]
    metric: Declared | None = None


def reference_of(source: Source, evaluation: Path | None, metric: str = "") -> Reference:
    """Run the source as it came. Raises `BadInputError` if it does not run, its answers are no numbers, or the metric is none."""
    inputs = source.review.inputs
    samples = load_samples(evaluation, inputs) if evaluation else random_samples(inputs, RANDOM_SAMPLES)
    declared = metrics.chosen(metric, samples)
    kept = source.work / f"answers-{_digest(evaluation) if evaluation else 'random'}.npz"
    if (before := _kept(kept, samples)) is not None:
        return Reference(samples, before, declared)
    try:
        outputs = parity.stack(answers_of(source, samples))
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has its own exception per failure
        raise BadInputError(f"{source.original.name}: ONNX Runtime does not run it: {one_line(error)}") from error
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            which = evaluation.name if evaluation else "random inputs"
            raise BadInputError(f"{source.original.name}: its output {name!r} has NaN or infinite values on {which}")
    # Kept only if they are good.
    write_npz(kept.with_suffix(".partial"), outputs)
    kept.with_suffix(".partial").replace(kept)
    return Reference(samples, outputs, declared)


def answers_of(source: Source, samples: Samples) -> list[dict[str, Array]]:
    session = OnnxRuntimeSession(source.original, threads=1)
    return [session.run(sample) for sample in samples]


def _kept(path: Path, samples: Samples) -> dict[str, Array] | None:
    """What the source answered when an earlier target of it was built: the same process would compute the same again."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        outputs: dict[str, Array] = {name: arrays[name] for name in arrays.files}
    return outputs if all(len(array) == len(samples) for array in outputs.values()) else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
