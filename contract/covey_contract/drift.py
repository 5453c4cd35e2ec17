"""What a build's inputs and outputs look like, as counts that add up: for telemetry, and for the evaluation set to compare with.

The manifest carries the `Reference`, which the converter counted over the evaluation set with the build itself. The device counts its
requests in the same bins. Counts of the same output may be added over requests, windows and devices (`merge`); how far two of
them lie apart is for the server to judge.

Both sides count by these rules, so that equal data give equal counts:
- PROBABILITIES, LOGITS: an output of shape (…, classes), read as rows of one score per class. Each of `rows[::row_stride(*rows.shape)]`
  counts once: in `classes` by the index of its highest element (the lowest index of several; index `MAX_CLASSES - 1` stands for all from
  there on), and in `scores` by the highest probability, of LOGITS after a softmax, in `SCORE_BINS` bins of equal width over [0, 1].
- VALUES: any other output. Each of the elements `flat[::stride(size)]` counts once in `values`: bin i holds those in
  [edges[i-1], edges[i]); the first bin has no lower bound, the last no upper one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec

from covey_contract.strenum import StrEnum

MAX_CLASSES = 1000
SCORE_BINS = 20
MAX_EDGES = 32
MAX_SAMPLED = 256
# A row of scores is looked at as a whole; of outputs with many classes, fewer rows are.
_MAX_ROW_ELEMENTS = 16_384
MAX_TENSORS = 8

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
ClassIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CLASSES)]
TensorName = Annotated[str, msgspec.Meta(max_length=256)]


class OutputKind(StrEnum):
    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    VALUES = "values"


class OutputCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`count`: how many rows (of a classifier) or elements were counted; each of the histograms that are not empty adds up to it."""

    count: Count = 0
    classes: dict[ClassIndex, Count] = {}  # those that occurred
    scores: tuple[Count, ...] = ()
    values: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if len(self.scores) not in (0, SCORE_BINS):
            raise ValueError(f"{len(self.scores)} bins of scores; there are {SCORE_BINS}")
        if len(self.values) > MAX_EDGES + 1:
            raise ValueError(f"{len(self.values)} bins of values; at most {MAX_EDGES + 1}")
        for bins in (tuple(self.classes.values()), self.scores, self.values):
            if bins and sum(bins) != self.count:
                raise ValueError("an output's counts do not add up")


class InputCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requests by what their input looked like; one may count in several. Large inputs are looked at in samples."""

    count: Count = 0
    nan: Count = 0  # with a NaN
    constant: Count = 0  # all elements alike: a covered lens, a dead sensor
    out_of_range: Count = 0  # with an element outside the reference's range


class OutputReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The evaluation set's counts of one output, and how they are counted. `edges` ascend; VALUES alone have them."""

    kind: OutputKind
    counts: OutputCounts
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.edges) > MAX_EDGES:
            raise ValueError(f"{len(self.edges)} edges; at most {MAX_EDGES}")
        ascending = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if not ascending or not all(map(math.isfinite, self.edges)):
            raise ValueError("the edges of an output's bins are finite and ascend")
        if self.counts.values and len(self.counts.values) != len(self.edges) + 1:
            raise ValueError(f"{len(self.counts.values)} bins of values between {len(self.edges)} edges")


class InputReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The range that the evaluation set's values of one input lie in, both ends included."""

    low: float
    high: float


class Reference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a build's inputs and outputs look like on the evaluation set, by the callers' names. At most `MAX_TENSORS` of each; the
    others are not counted."""

    samples: Count
    outputs: dict[TensorName, OutputReference] = {}
    inputs: dict[TensorName, InputReference] = {}

    def __post_init__(self) -> None:
        if max(len(self.outputs), len(self.inputs)) > MAX_TENSORS:
            raise ValueError(f"at most {MAX_TENSORS} inputs and {MAX_TENSORS} outputs have a reference")


def stride(size: int) -> int:
    """Every how many-th element of a tensor of `size` elements is counted.

    >>> stride(256), stride(257), stride(0)
    (1, 2, 1)
    """
    return max(1, -(-size // MAX_SAMPLED))


def row_stride(rows: int, classes: int) -> int:
    """Every how many-th row of scores is counted.

    >>> row_stride(1, 10), row_stride(300, 10), row_stride(80, 1000)
    (1, 2, 5)
    """
    most = min(MAX_SAMPLED, max(1, _MAX_ROW_ELEMENTS // max(classes, 1)))
    return max(1, -(-rows // most))


def merge(counts: Iterable[OutputCounts]) -> OutputCounts:
    """The counts of all together; raises `ValueError` if they were counted in different bins."""
    merged = OutputCounts()
    for one in counts:
        classes = dict(merged.classes)
        for index, number in one.classes.items():
            classes[index] = classes.get(index, 0) + number
        merged = OutputCounts(
            count=merged.count + one.count,
            classes=classes,
            scores=_added(merged.scores, one.scores),
            values=_added(merged.values, one.values),
        )
    return merged


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    if not left or not right:
        return left or right
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} bins cannot be added")
    return tuple(a + b for a, b in zip(left, right, strict=True))
