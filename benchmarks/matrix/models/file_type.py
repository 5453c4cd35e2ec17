"""What kind of file is it? Magika on the files that lie in the packages themselves: a text and byte classifier."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.matrix.subject import Ask, Drawn, Purpose, Score, Subject

_HALF, _PADDING = 1024, 256
_LARGEST = 4 << 20


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    """The first and last kilobyte of real files, of every suffix in turn."""
    generator = np.random.default_rng(purpose)
    by_suffix: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(packages.rglob("*")):
        if path.is_file() and 8 < path.stat().st_size < _LARGEST and "__pycache__" not in path.parts:
            by_suffix[path.suffix].append(path)
    kinds = sorted(by_suffix)
    rows = []
    for index in range(count):
        files = by_suffix[kinds[index % len(kinds)]]
        content = files[int(generator.integers(len(files)))].read_bytes()
        # A file is also what is left of it when its first lines are gone.
        start = int(generator.integers(0, max(len(content) - 4 * _HALF, 1))) if index % 3 == 0 else 0
        rows.append(features(content[start:]))
    return Drawn({"bytes": np.stack(rows)[:, np.newaxis]})


def features(content: bytes) -> np.typing.NDArray[np.int32]:
    """(2048,): the beginning without leading blanks, then the end without trailing ones, padded to a kilobyte each."""
    first = content[: 4 * _HALF].lstrip()[:_HALF]
    last = content[-4 * _HALF :].rstrip()[-_HALF:]
    row = np.full(2 * _HALF, _PADDING, np.int32)
    row[: len(first)] = list(first)
    row[2 * _HALF - len(last) :] = list(last)
    return row


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    del packages
    same = [_kind(source, drawn, index) == _kind(build, drawn, index) for index in range(len(drawn))]
    return Score("same kind", 1.0, float(np.mean(same)), len(drawn))


def _kind(ask: Ask, drawn: Drawn, index: int) -> int:
    return int(ask(drawn.sample(index))["target_label"].argmax())


SUBJECT = Subject(
    name="file-type",
    task="text classifier",
    package="magika",
    source="magika/models/standard_v3_3/model.onnx",
    draw=draw,
    judge=judge,
    calibration=200,
    evaluation=150,
    held_out=200,
)
