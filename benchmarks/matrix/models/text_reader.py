"""What does the line say? PP-OCR v4's recogniser on rendered lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Array, Ask, Drawn, Purpose, Score, Subject

_WIDTH, _HEIGHT = 320, 48


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    lines = []
    for _ in range(count):
        text = scenes.sentence(generator, 3)[:20]
        points = int(generator.integers(24, 33))
        lines.append(
            scenes.channels_first(scenes.text_image(packages, text, (_WIDTH, _HEIGHT), generator, points=points))
        )
    return Drawn({"x": np.stack(lines)})


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """One minus the build's character error rate against what the source reads."""
    del packages
    wrong = characters = 0
    for index in range(len(drawn)):
        truth, answer = (_read(next(iter(ask(drawn.sample(index)).values()))) for ask in (source, build))
        wrong += _edits(truth, answer)
        characters += len(truth)
    return Score("characters as the source reads them", 1.0, 1 - wrong / max(characters, 1), characters)


def _read(scores: Array) -> list[int]:
    """Greedy CTC: the best class of each step, repetitions and blanks (class 0) dropped."""
    best = scores.reshape(scores.shape[-2:]).argmax(axis=-1).tolist()
    return [one for one, before in zip(best, [0, *best], strict=False) if one not in (0, before)]


def _edits(one: list[int], other: list[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


SUBJECT = Subject(
    name="text-reader",
    task="OCR recogniser",
    package="rapidocr-onnxruntime",
    source="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    draw=draw,
    judge=judge,
    shapes={"x": (1, 3, _HEIGHT, _WIDTH)},
    metric="characters",
    budget=0.02,
    calibration=48,
    evaluation=128,  # a budget of 0.02 needs 74 to bear a single loss
    held_out=48,
)
