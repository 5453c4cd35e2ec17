"""From the source file to the graph that every backend starts from: turned into ONNX, reviewed, its shapes fixed, cleaned up by onnxslim.

The result is kept in the work folder, named by the source's digest, because the next target of the same source needs it too and
importing onnxslim alone takes longer than most builds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covey_converters import review
from covey_converters.backend import Source
from covey_converters.sources.registry import imported


def prepare(
    path: Path, work: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Source, tuple[str, ...]]:
    """The source, and notes for the report; raises `BadInputError`."""
    found = imported(path, work, shapes or {})
    path = found.path
    model, reviewed = review.load(path, shapes)
    folder = work / f"source-{_digest(path, shapes or {})}"
    folder.mkdir(parents=True, exist_ok=True)
    notes = [*found.notes, *reviewed.notes]
    slim, plain = folder / "slim.onnx", folder / "plain.onnx"
    if not slim.exists() and not plain.exists():
        clean_up(model, slim, plain)
    if not slim.exists():
        notes.append("onnxslim could not clean up the graph; the builds start from it as it came")
    graph = slim if slim.exists() else plain
    return Source(original=path, graph=graph, review=reviewed, work=folder, native=found.native), tuple(notes)


def clean_up(model: Any, slim: Path, plain: Path) -> None:
    """Into `slim`, or as it is into `plain` where onnxslim fails."""
    import onnx
    import onnxslim

    try:
        cleaned = onnxslim.slim(model)
        onnx.checker.check_model(cleaned)
    except Exception:  # noqa: BLE001  # it runs rewrites of every kind; its failure costs speed, not correctness, and is noted
        _save(onnx, model, plain)
        return
    _save(onnx, cleaned, slim)


def _save(onnx: Any, model: Any, path: Path) -> None:
    """Whole or not at all: a build that is killed in between must not leave half a graph for the next one."""
    partial = path.with_suffix(".partial")
    onnx.save(model, str(partial), format="protobuf")
    partial.replace(path)


def _digest(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr(sorted(shapes.items())).encode())
    return digest.hexdigest()[:16]
