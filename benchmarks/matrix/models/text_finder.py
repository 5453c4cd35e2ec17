"""Where is text? PP-OCR v4's detector on pages with rendered lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Array, Ask, Drawn, Purpose, Score, Subject

_SIZE = 320
_TEXT, _SMALLEST, _SAME = 0.3, 24, 0.5


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    return Drawn({"x": np.stack([scenes.channels_first(_page(packages, generator)) for _ in range(count)])})


def _page(packages: Path, generator: np.random.Generator) -> Any:
    """Lines of several sizes on a photograph or on paper."""
    background = str(generator.choice(["coffee.png", "rocket.jpg", "page.png", "brick.png", "text.png", "grass.png"]))
    page = scenes.view(packages, background, _SIZE, generator)
    at = int(generator.integers(4, 30))
    while at < _SIZE - 50:
        points = int(generator.integers(14, 34))
        text = scenes.sentence(generator, int(generator.integers(1, 4)))
        width = min(int(len(text) * points * 0.55) + 20, _SIZE - 10)
        line = scenes.text_image(packages, text, (width, points + 12), generator, points=points)
        page.paste(line, (int(generator.integers(0, _SIZE - width)), at))
        at += points + 12 + int(generator.integers(6, 50))
    return page


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Share of the source's regions that the build finds too, overlapping by at least half."""
    del packages
    found = wanted = 0
    for index in range(len(drawn)):
        truth, answer = (_regions(next(iter(ask(drawn.sample(index)).values()))) for ask in (source, build))
        wanted += len(truth)
        found += sum(any(_overlap(one, other) >= _SAME for other in answer) for one in truth)
    return Score("regions matched", 1.0, found / max(wanted, 1), wanted)


def _regions(scores: Array) -> list[tuple[slice, slice]]:
    """The boxes around connected pixels that are text."""
    numbered, _ = ndimage.label(np.asarray(scores, np.float32).reshape(scores.shape[-2:]) > _TEXT)
    boxes = ndimage.find_objects(numbered)
    return [box for index, box in enumerate(boxes, 1) if int((numbered[box] == index).sum()) >= _SMALLEST]


def _overlap(one: tuple[slice, slice], other: tuple[slice, slice]) -> float:
    """Intersection over union of two boxes."""
    common = 1
    for a, b in zip(one, other, strict=True):
        common *= max(0, min(a.stop, b.stop) - max(a.start, b.start))
    areas = [(box[0].stop - box[0].start) * (box[1].stop - box[1].start) for box in (one, other)]
    return float(common / (sum(areas) - common))


SUBJECT = Subject(
    name="text-finder",
    task="text detector",
    package="rapidocr-onnxruntime",
    source="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    draw=draw,
    judge=judge,
    shapes={"x": (1, 3, _SIZE, _SIZE)},
    metric=f"regions:threshold={_TEXT},smallest={_SMALLEST}",
    budget=0.025,
    calibration=32,
    evaluation=192,
    held_out=256,  # pages that are hard are lost whole: 64 say 0.051 or 0.02, as they fall
)
