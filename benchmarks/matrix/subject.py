"""What the matrix knows about one model: where it lies, what it is fed with, and how its answers are judged.

The judge is independent of the converters: it is given two functions, the source and the build, and asks both on samples that no
build has seen. Its figure is the task's own (text read, notes found, boxes matched), never a cosine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
Arrays = dict[str, Array]
Ask = Callable[[Mapping[str, Array]], Arrays]


class Unavailable(Exception):  # noqa: N818  # no error: a model that this machine cannot make is left out, and the page says so
    """The model cannot be had here."""


class Purpose(enum.IntEnum):
    """What samples are drawn for. Its number is the seed; no sample serves two purposes."""

    CALIBRATION = 11
    EVALUATION = 12
    HELD_OUT = 13


@dataclass(frozen=True)
class Drawn:
    """Samples, (n, *shape of the input) by input name, and the class of each where it is known."""

    arrays: Arrays
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def sample(self, index: int) -> Arrays:
        return {name: array[index] for name, array in self.arrays.items()}


@dataclass(frozen=True)
class Score:
    """The task's metric for source and build, both from 0 to 1. `source` is 1 where the source itself is the truth."""

    metric: str
    source: float
    build: float
    samples: int  # of what the metric counts: lines, boxes, frames

    @property
    def drop(self) -> float:
        return self.source - self.build


@dataclass(frozen=True)
class Subject:
    """One model. `draw(packages, count, purpose)` gives samples; `judge(packages, drawn, source, build)` scores."""

    name: str
    task: str
    package: str
    source: str  # below the folder of packages
    draw: Callable[[Path, int, Purpose], Drawn]
    judge: Callable[[Path, Drawn, Ask, Ask], Score]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    metric: str = ""  # what the converters' own gate judges by, as `covey-convert build --metric`
    budget: float = 0.01
    calibration: int = 64
    evaluation: int = 64
    held_out: int = 64
    # The highest drop of the metric that is no wrong answer, by precision. INT8: a twentieth of all answers.
    allowed: dict[str, float] = field(default_factory=lambda: {"fp32": 0.005, "fp16": 0.02, "int8": 0.05})
    make: Callable[[Path, Path], None] | None = None  # (packages, out): where the package has weights but no graph
