"""The task's metric, by which builds are judged: how one is declared in a line of text, and what it needs of the evaluation.

Shared by the server, which refuses at the push what nobody could judge, and the converters, which judge.

classification                              accuracy at the labels; `figure=f1` (precision, recall) judges by that one
detection:boxes=0-3,scores=4-,format=cxcywh boxes decoded from an output, matched with the source's
regions:threshold=0.3                       connected regions of a map, matched with the source's
characters:blank=0                          sequences read by CTC, by character error rate
decisions:threshold=0.5                     each element against a threshold, by F1
embedding                                   cosine of each sample and agreement of neighbours
package.module:function                     a function of the operator's own, see `covey_converters.metrics.custom`
"""

from __future__ import annotations

import ast
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from covey_contract.errors import DecodeError
from covey_contract.sources import members

CUSTOM = "custom"
CLASSIFICATION = "classification"
# Arrays of an evaluation file that are no inputs.
LABELS = "labels"
METRIC = "metric"
_MAX_LENGTH = 300
_MAX_MEMBER_BYTES = 64 * 1024
_ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_OPTIONS = {
    CLASSIFICATION: {"figure", "output"},
    "detection": {"output", "axis", "boxes", "format", "scores", "scores_output", "objectness", "classes", "threshold"},
    "regions": {"output", "threshold", "smallest"},
    "characters": {"output", "blank"},
    "decisions": {"output", "threshold"},
    "embedding": {"output"},
}
_FIGURES = ("accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class Declared:
    """`kind` is one of the names above, or `CUSTOM` with the entry point in `options["function"]`."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Declared:
    """Raises `DecodeError` with the part that is wrong.

    >>> parse("detection:boxes=0-3,scores=4-")
    Declared(kind='detection', options={'boxes': '0-3', 'scores': '4-'})
    >>> parse("my_metrics:word_accuracy")
    Declared(kind='custom', options={'function': 'my_metrics:word_accuracy'})
    """
    kind, _, rest = text.strip().partition(":")
    if len(text) <= _MAX_LENGTH and kind in _OPTIONS:
        return Declared(kind, _options(kind, rest))
    if len(text) <= _MAX_LENGTH and _ENTRY_POINT.fullmatch(text.strip()):
        return Declared(CUSTOM, {"function": text.strip()})
    raise DecodeError(
        f"metric {text[:80]!r} is none of {', '.join(_OPTIONS)}, nor a Python entry point module:function"
    )


def _options(kind: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in _OPTIONS[kind] or key in found:
            raise DecodeError(
                f"metric {kind}: {pair.strip()[:80]!r} is no option; there are {', '.join(sorted(_OPTIONS[kind]))}"
            )
        found[key] = value
    if found.get("figure", "accuracy") not in _FIGURES:
        raise DecodeError(f"metric {kind}: figure {found['figure'][:40]!r} is none of {', '.join(_FIGURES)}")
    return found


def check_evaluation(metric: str, evaluation: BinaryIO | None) -> None:
    """Can builds be judged by this metric (empty: what the evaluation declares) on this .npz file? Reads its table of contents and the
    declaration in it, never an array, and leaves it at its beginning. Raises `DecodeError` with what is missing."""
    declared = parse(metric) if metric else None
    if evaluation is None:
        if declared is not None:
            raise DecodeError(f"metric {metric[:80]!r} judges nothing without an evaluation (.npz)")
        return
    try:
        names = {one.filename.removesuffix(".npy") for one in members(evaluation) if one.filename.endswith(".npy")}
        if not names:
            raise DecodeError("the evaluation is no .npz file: it holds no arrays")
        inside = _declared_in(evaluation) if METRIC in names else ""
    finally:
        evaluation.seek(0)
    if declared is None and inside:
        declared = parse(inside)
        if declared.kind == CUSTOM:
            raise DecodeError(f"the evaluation names the function {inside[:80]!r}; only the version's metadata may")
    if declared is not None and declared.kind == CLASSIFICATION and LABELS not in names:
        raise DecodeError(f"metric {CLASSIFICATION} needs an evaluation with an array {LABELS!r}; this one has none")


def _declared_in(evaluation: BinaryIO) -> str:
    """The one string of the array `metric`. NumPy's format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""
    try:
        with zipfile.ZipFile(evaluation) as archive, archive.open(f"{METRIC}.npy") as file:
            content = file.read(_MAX_MEMBER_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise DecodeError(f"the evaluation's array {METRIC!r} cannot be read: {error}") from error
    wide = content[6:7] != b"\x01"
    start = 12 if wide else 10
    length = int.from_bytes(content[8:start], "little")
    try:
        if content[:6] != b"\x93NUMPY" or len(content) > _MAX_MEMBER_BYTES:
            raise ValueError
        header = ast.literal_eval(content[start : start + length].decode("latin-1").strip())
        size = re.fullmatch(r"[<|]U(\d{1,4})", header["descr"])
        if size is None or header["shape"] != ():
            raise ValueError
        return content[start + length :][: 4 * int(size[1])].decode("utf-32-le").rstrip("\0")
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise DecodeError(f"the evaluation's array {METRIC!r} must be one string") from error
