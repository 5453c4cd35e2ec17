"""What a backend is: how one runtime's builds are made, and how they are run to be compared and measured.

A backend is one file in `covey_converters.backends` and one line in its registry. It imports its toolchain only inside its
methods, which are called in a build process.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey_contract.manifest import Runtime, TensorSpec
from covey_converters.review import Review
from covey_converters.samples import Samples

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Source:
    """A reviewed model: the file as it came, which is the reference, and the cleaned-up graph that builds start from. The review's shapes are
    those of one row, whatever the builds take."""

    original: Path
    graph: Path
    review: Review
    work: Path  # for scratch files
    native: Path | None = None  # the source as it came, where a backend takes that as its own float build
    opened: Path | None = None  # `graph` with its first dimension open, where more than one row may come at once
    max_batch: int = 1  # so many; see `covey_converters.batching`

    @property
    def start(self) -> Path:
        """The graph that builds start from, if they need no fixed shapes."""
        return self.opened or self.graph

    def alone(self) -> Source:
        """The same, for one row at a time."""
        return replace(self, opened=None, max_batch=1)


@dataclass(frozen=True)
class Built:
    """What a recipe left in its folder: the files, which of them the runtime is given, and how callers' tensors map to it."""

    folder: Path
    files: tuple[str, ...]
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    runtime_min: str | None = None
    runtime_exact: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    steps: dict[str, float] = field(default_factory=dict)  # quantisation step by output name
    notes: tuple[str, ...] = ()
    max_batch: int = 1  # rows that may come at once


class Session(Protocol):
    """A loaded build. Tensors are named, typed and laid out as in the source model."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...


class Backend(Protocol):
    """One runtime's way of building and running."""

    @property
    def runtime(self) -> Runtime: ...

    @property
    def module(self) -> str:
        """The runtime's own module, imported before loading is timed."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Whose versions the report records."""

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        """The recipes for a precision, best first. `calibrated`: there is calibration data. Raises `UnsupportedError`."""

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        """Make the build in `folder`; raises `RecipeError` or `UnsupportedError`, or `UnverifiableError` with what building
        it has shown."""

    def open(self, built: Built, *, threads: int, reference: bool = False) -> Session:
        """Load a build. `reference`: by other kernels than a device would use, where the runtime has some."""


def copy_into(folder: Path, source: Path, name: str) -> str:
    """Copy a file into a build's folder under `name`, and give that name back."""
    shutil.copyfile(source, folder / name)
    return name
