"""What one build process is told to do, and what a finished build is, as files of one folder.

A `BuildSpec` travels to the build process as JSON; the process answers with a `BuildReport` (see `covey_contract.building`).
"""

from __future__ import annotations

import msgspec

from covey_contract.manifest import Batch, ModelName, VersionName
from covey_contract.wire import Message

RECIPE_SECONDS = 300.0


class BuildSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """One target of one model version. Paths are absolute; `out` is the folder that becomes the build."""

    model: ModelName
    version: VersionName
    target: str
    source: str
    out: str
    work: str  # a folder for scratch files; the cleaned-up source is kept in it for the next target
    calibration: str | None = None
    evaluation: str | None = None
    labels: str | None = None
    budget: float = 0.01
    metric: str = ""  # see `covey_converters.metrics`; empty: what the evaluation declares, or its labels
    recipe: str = ""  # this one alone; empty: one after the other until one passes
    metadata: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # by input name, for models whose shapes are open
    max_batch: Batch = 1  # rows of several requests that the build should take at once; 1: no batching
    measure_seconds: float = 0.5  # of inference, for each of source and build
    recipe_seconds: float = RECIPE_SECONDS  # for one recipe: made, run on the evaluation, judged
    chain_seconds: float = 1200.0  # after which no further recipe is begun


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a build process may use. The kernel enforces all but `seconds`, which is the parent's deadline."""

    seconds: float = 1800.0  # wall clock
    cpu_seconds: int = 3600
    memory_mb: int = 16_000  # address space of each process
    file_mb: int = 8_000  # largest single file
