"""What does it sound like? openWakeWord's speech embedding on the spectra of speech-like sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Ask, Drawn, Floats, Purpose, Score, Subject
from covey_converters.backends.onnx_session import OnnxRuntimeSession

_MODELS = "openwakeword/resources/models"
_FRAMES, _RATE = 76, 16_000


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    spectra = OnnxRuntimeSession(packages / _MODELS / "melspectrogram.onnx", threads=1)
    rows: list[Floats] = []
    while len(rows) < count:
        sound = scenes.speech(generator, 2.5, _RATE) * np.float32(32_767)
        # The scale is openWakeWord's own.
        mel = np.asarray(spectra.run({"input": sound[np.newaxis]})["output"], np.float32).reshape(-1, 32) / np.float32(
            10
        ) + np.float32(2)
        rows += [mel[at : at + _FRAMES].reshape(1, _FRAMES, 32, 1) for at in range(0, len(mel) - _FRAMES, 24)]
    return Drawn({"input_1": np.stack(rows[:count]).astype(np.float32)})


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Share of sounds that are nearest to themselves among the source's embeddings of all sounds."""
    del packages
    truth, answer = (_embeddings(ask, drawn) for ask in (source, build))
    nearest = (answer @ truth.T).argmax(axis=1)
    return Score("finds itself", 1.0, float(np.mean(nearest == np.arange(len(drawn)))), len(drawn))


def _embeddings(ask: Ask, drawn: Drawn) -> Floats:
    """(n, 96), each of length 1."""
    rows = np.stack([ask(drawn.sample(index))["conv2d_19"].astype(np.float32).ravel() for index in range(len(drawn))])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows


SUBJECT = Subject(
    name="sound-embedding",
    task="audio embedding",
    package="openwakeword",
    source=f"{_MODELS}/embedding_model.onnx",
    draw=draw,
    judge=judge,
    metric="embedding",
    calibration=128,
    evaluation=64,
    held_out=120,
)
