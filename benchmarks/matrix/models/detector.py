"""Where is what? NudeNet's YOLO-like detector on a portrait and other photographs: one output mixes boxes and scores.

The portrait is scikit-image's astronaut; the detector knows faces, clothed and covered. The package is a test input only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Array, Ask, Drawn, Floats, Purpose, Score, Subject

_SIZE = 320
_LEAST, _SAME = 0.25, 0.5
_PHOTOGRAPHS = (
    "astronaut.png",
    "astronaut.png",
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
)


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    names = [_PHOTOGRAPHS[index % len(_PHOTOGRAPHS)] for index in range(count)]
    views = [_scene(packages, name, index, generator) for index, name in enumerate(names)]
    return Drawn({"images": np.stack([scenes.channels_first(view, centred=False) for view in views])})


def _scene(packages: Path, name: str, index: int, generator: np.random.Generator) -> Any:
    """Every other one is four photographs side by side, so that there is more than one box to find."""
    if index % 2:
        return scenes.view(packages, name, _SIZE, generator, least=0.45)
    half = _SIZE // 2
    whole = scenes.imaging(packages, "Image").new("RGB", (_SIZE, _SIZE))
    for left in (0, half):
        for top in (0, half):
            whole.paste(scenes.view(packages, "astronaut.png", half, generator, least=0.4), (left, top))
    return whole


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Share of the source's detections that the build has too: same class, boxes overlapping by at least half."""
    del packages
    found = wanted = 0
    for index in range(len(drawn)):
        truth, answer = (detections(ask(drawn.sample(index))["output0"]) for ask in (source, build))
        wanted += len(truth)
        found += sum(any(one[5] == other[5] and _overlap(one, other) >= _SAME for other in answer) for one in truth)
    return Score("boxes matched", 1.0, found / max(wanted, 1), wanted)


def detections(output: Array) -> list[Floats]:
    """Rows (left, top, right, bottom, score, class) after non-maximum suppression; `output`: (1, 4 + classes, anchors)."""
    table = np.asarray(output, np.float32)[0].T
    centre, size, scores = table[:, :2], table[:, 2:4], table[:, 4:]
    rows = np.column_stack([centre - size / 2, centre + size / 2, scores.max(axis=1), scores.argmax(axis=1)])
    kept: list[Floats] = []
    for row in sorted(rows[rows[:, 4] > _LEAST], key=lambda row: -float(row[4])):
        if all(_overlap(row, other) < 0.45 for other in kept):
            kept.append(row)
    return kept


def _overlap(one: Floats, other: Floats) -> float:
    """Intersection over union."""
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    areas = [float(np.prod(box[2:4] - box[:2])) for box in (one, other)]
    return common / max(sum(areas) - common, 1e-9)


SUBJECT = Subject(
    name="detector",
    task="detector",
    package="nudenet",
    source="nudenet/320n.onnx",
    draw=draw,
    judge=judge,
    shapes={"images": (1, 3, _SIZE, _SIZE)},
    metric=f"detection:boxes=0-3,scores=4-,format=cxcywh,axis=1,threshold={_LEAST}",
    budget=0.025,
    calibration=48,
    evaluation=140,
    held_out=112,
)
