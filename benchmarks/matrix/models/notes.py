"""Which notes are played? Basic Pitch on struck notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Ask, Drawn, Purpose, Score, Subject

_SAMPLES, _RATE = 43_844, 22_050
_INPUT, _NOTES = "serving_default_input_2:0", "StatefulPartitionedCall:1"
_PLAYED = 0.3


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    del packages
    generator = np.random.default_rng(purpose)
    sounds = [scenes.music(generator, _SAMPLES, _RATE)[np.newaxis, :, np.newaxis] for _ in range(count)]
    return Drawn({_INPUT: np.stack(sounds)})


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """F1 of the build's played notes (frame by frame) against the source's."""
    del packages
    both = wanted = found = 0
    for index in range(len(drawn)):
        truth, answer = (ask(drawn.sample(index))[_NOTES] > np.float32(_PLAYED) for ask in (source, build))
        both += int((truth & answer).sum())
        wanted += int(truth.sum())
        found += int(answer.sum())
    return Score("F1 of played notes", 1.0, 2 * both / max(wanted + found, 1), wanted)


SUBJECT = Subject(
    name="music-notes",
    task="music transcription",
    package="basic-pitch",
    source="basic_pitch/saved_models/icassp_2022/nmp.onnx",
    draw=draw,
    judge=judge,
    metric=f"decisions:output={_NOTES},threshold={_PLAYED}",
    budget=0.03,
    calibration=32,
    evaluation=16,
    held_out=24,
)
