"""Is somebody speaking? Silero VAD with its LSTM state carried from chunk to chunk, as an application would."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.subject import Arrays, Ask, Drawn, Floats, Purpose, Score, Subject
from covey_converters.backends.onnx_session import OnnxRuntimeSession

_RATE, _CHUNK, _CONTEXT = 16_000, 512, 64
_SOURCE = "silero_vad/data/silero_vad_openvino_16k.onnx"
_CHUNKS = 40  # of one recording: 1.3 s
_SPEAKING = 0.5


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    """Chunks of recordings in order, each with the state that the source had before it."""
    generator = np.random.default_rng(purpose)
    session = OnnxRuntimeSession(packages / _SOURCE, threads=1)
    chunks: list[Floats] = []
    states: list[Floats] = []
    while len(chunks) < count:
        state: Floats = np.zeros((2, 1, 128), np.float32)
        for chunk in _recording(generator):
            chunks.append(chunk)
            states.append(state)
            state = np.asarray(session.run({"input": chunk, "state": state})["stateN"], np.float32)
    return Drawn({"input": np.stack(chunks[:count]), "state": np.stack(states[:count])})


def _recording(generator: np.random.Generator) -> list[Floats]:
    sound = scenes.speech(generator, (_CHUNKS * _CHUNK + _CONTEXT) / _RATE, _RATE)
    return [sound[at : at + _CONTEXT + _CHUNK][np.newaxis] for at in range(0, _CHUNKS * _CHUNK, _CHUNK)]


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Share of chunks on which both say the same, each carrying its own state through every recording."""
    del packages
    said = [_follow(ask, drawn) for ask in (source, build)]
    return Score("same decision", 1.0, float(np.mean(said[0] == said[1])), len(drawn))


def _follow(ask: Ask, drawn: Drawn) -> Floats:
    state = drawn.arrays["state"][0]
    speaking = []
    for index in range(len(drawn)):
        if index % _CHUNKS == 0:
            state = np.zeros((2, 1, 128), np.float32)
        answer: Arrays = ask({"input": drawn.arrays["input"][index], "state": state})
        state = answer["stateN"]
        speaking.append(float(answer["output"].ravel()[0]) > _SPEAKING)
    return np.asarray(speaking, np.float32)


SUBJECT = Subject(
    name="voice-activity",
    task="voice activity with state",
    package="silero-vad",
    source=_SOURCE,
    draw=draw,
    judge=judge,
    metric=f"decisions:output=output,threshold={_SPEAKING}",
    budget=0.02,
    calibration=240,
    evaluation=200,
    held_out=400,
)
