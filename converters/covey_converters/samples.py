"""Calibration and evaluation data: .npz files with one array per input, samples on the first axis.

Nothing here trusts the file: no pickles, a limit on what it may unpack to, and every array is checked against the model's inputs.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covey_contract.manifest import DataType, TensorSpec
from covey_converters.errors import BadInputError

Array = NDArray[np.generic]
Tensors = Mapping[str, Array]

MAX_UNPACKED_BYTES = 4 << 30
MAX_SAMPLES = 20_000
LABELS = "labels"
METRIC = "metric"
# Watching every activation is what calibration costs: some seconds for this many elements.
_CALIBRATION_ELEMENTS = 150_000_000
_MIN_CALIBRATION = 32


def numpy_type(datatype: DataType) -> np.dtype[np.generic]:
    """The little-endian numpy type of an Open Inference Protocol datatype.

    >>> numpy_type(DataType.FP32)
    dtype('float32')
    """
    names = {DataType.BOOL: "bool", DataType.FP16: "float16", DataType.FP32: "float32", DataType.FP64: "float64"}
    return np.dtype(names.get(datatype, datatype.value.lower()))


@dataclass(frozen=True)
class Samples:
    """n samples of every input, ready to be fed: `arrays[name]` has shape (n, *shape of the input)."""

    arrays: dict[str, Array]
    labels: NDArray[np.int64] | None = None
    synthetic: bool = False  # drawn at random, because nobody gave real data
    metric: str = ""  # the metric that the file declares
    others: dict[str, Array] = field(default_factory=dict)  # arrays of the file that are no input's, for metrics

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index in range(len(self)):
            yield {name: array[index] for name, array in self.arrays.items()}

    def take(self, indices: Sequence[int]) -> Samples:
        chosen = list(indices)
        arrays = {name: array[chosen] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, labels=None if self.labels is None else self.labels[chosen])

    def affordable(self, activations: int, most: int) -> Samples:
        """What to calibrate with: `most` samples, fewer for a model with many activations, whose ranges each sample shows many of."""
        return self.spread(max(_MIN_CALIBRATION, min(most, _CALIBRATION_ELEMENTS // max(activations, 1))))

    def spread(self, count: int) -> Samples:
        """At most `count` samples, evenly spaced, so that sorted data still gives every kind."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)).tolist())


def load_samples(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    """Read and check an .npz file; raises `BadInputError` with one line that names the file and the array."""
    arrays = _read(path)
    samples: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in arrays:
            raise BadInputError(f"{path.name}: no array for input {spec.name!r}; it holds {_listed(arrays)}")
        samples[spec.name] = _fitted(path, spec, arrays[spec.name])
        counts[spec.name] = len(samples[spec.name])
    if len(set(counts.values())) != 1:
        raise BadInputError(f"{path.name}: the inputs have different numbers of samples: {counts}")
    count = next(iter(counts.values()))
    if not 0 < count <= MAX_SAMPLES:
        raise BadInputError(f"{path.name}: {count} samples; 1 to {MAX_SAMPLES} are allowed")
    others = {name: array for name, array in arrays.items() if name not in {*samples, LABELS, METRIC}}
    labels = None if LABELS in samples else _labels(path, arrays.get(LABELS), count)
    return Samples(
        samples, labels, metric="" if METRIC in samples else _metric(path, arrays.get(METRIC)), others=others
    )


def random_samples(inputs: Sequence[TensorSpec], count: int, seed: int = 0) -> Samples:
    """Seeded inputs for a model without data: floats uniform in [0, 1), integers in {0, 1}. Good for parity, for nothing else."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for spec in inputs:
        shape = (count, *(abs(size) for size in spec.shape))
        dtype = numpy_type(spec.datatype)
        draws = generator.random(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        arrays[spec.name] = draws.astype(dtype)
    return Samples(arrays, synthetic=True)


def _read(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise BadInputError(f"{path.name}: unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except (
        *(
            zipfile.BadZipFile,
            zlib.error,
            ValueError,
            EOFError,
            OSError,
            MemoryError,
            NotImplementedError,
            RuntimeError,
        ),
    ) as error:
        raise BadInputError(f"{path.name}: not a readable .npz file of plain arrays: {error}") from error


def _fitted(path: Path, spec: TensorSpec, array: Array) -> Array:
    """(n, *shape) as the input wants it; an input with a batch of 1 may come without that axis."""
    shape = tuple(spec.shape)
    with_batch = array[:, np.newaxis] if shape and shape[0] == 1 and array.ndim == len(shape) else array
    if with_batch.ndim != len(shape) + 1 or any(
        want not in (-1, have) for want, have in zip(shape, with_batch.shape[1:], strict=False)
    ):
        raise BadInputError(
            f"{path.name}: array {spec.name!r} has shape {list(array.shape)}; samples of {list(shape)} are needed"
        )
    dtype = numpy_type(spec.datatype)
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (dtype.kind == "f" and array.dtype.kind in "iub"):
        raise BadInputError(f"{path.name}: array {spec.name!r} is {array.dtype}; the model takes {dtype}")
    if with_batch.dtype.kind == "f" and not np.isfinite(with_batch).all():
        raise BadInputError(f"{path.name}: array {spec.name!r} holds NaN or infinite values")
    return with_batch.astype(dtype, copy=False)


def _labels(path: Path, labels: Array | None, count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    numbers = labels.astype(np.int64) if labels.dtype.kind in "iu" else np.array([-1])
    if labels.shape != (count,) or (numbers < 0).any():
        raise BadInputError(
            f"{path.name}: 'labels' must be {count} class numbers, one per sample; it is {labels.dtype} {list(labels.shape)}"
        )
    return numbers


def _metric(path: Path, declared: Array | None) -> str:
    if declared is None:
        return ""
    if declared.dtype.kind != "U" or declared.ndim:
        raise BadInputError(f"{path.name}: 'metric' must be one string; it is {declared.dtype} {list(declared.shape)}")
    return str(declared)


def _listed(arrays: Mapping[str, object]) -> str:
    names = sorted(arrays)
    return ", ".join(repr(name) for name in names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing"
