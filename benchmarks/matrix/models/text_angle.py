"""Is a line of text upside down? PP-OCR's angle classifier, with labels by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Ask, Drawn, Purpose, Score, Subject

_WIDTH, _HEIGHT = 192, 48


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    operations = scenes.imaging(packages, "ImageOps")
    labels = generator.integers(0, 2, count)
    lines = []
    for turned in labels:
        line = scenes.text_image(packages, scenes.sentence(generator, 3), (_WIDTH, _HEIGHT), generator)
        lines.append(scenes.channels_first(operations.mirror(operations.flip(line)) if turned else line))
    return Drawn({"x": np.stack(lines)}, labels)


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    del packages
    assert drawn.labels is not None
    right = [
        float(np.mean([_answer(ask, drawn, index) == label for index, label in enumerate(drawn.labels)]))
        for ask in (source, build)
    ]
    return Score("accuracy", right[0], right[1], len(drawn))


def _answer(ask: Ask, drawn: Drawn, index: int) -> int:
    return int(next(iter(ask(drawn.sample(index)).values())).argmax())


SUBJECT = Subject(
    name="text-angle",
    task="vision classifier",
    package="rapidocr-onnxruntime",
    source="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    draw=draw,
    judge=judge,
    shapes={"x": (1, 3, _HEIGHT, _WIDTH)},
    calibration=128,
    evaluation=200,
    held_out=300,
    allowed={"fp32": 0.0, "fp16": 0.005, "int8": 0.01},
)
