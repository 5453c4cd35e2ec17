"""Whether a new build is loaded beside the one that serves, or in its place. Pure.

Side by side costs no request anything, and the memory of both. One after the other needs that of the larger one alone; requests wait
meanwhile, as many and as long as the gateway lets them.

>>> choose(SwapMode.AUTO, Memory(needed_mb=300.0, available_mb=500.0, margin_mb=100.0))
<SwapMode.PARALLEL: 'parallel'>
>>> choose(SwapMode.AUTO, Memory(needed_mb=300.0, available_mb=350.0, margin_mb=100.0))
<SwapMode.SEQUENTIAL: 'sequential'>
"""

from __future__ import annotations

from dataclasses import dataclass

from covey_contract.strenum import StrEnum


class SwapMode(StrEnum):
    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Memory:
    """In MB. `needed_mb`: of the candidate's runner, as its build measured or as the build that serves takes; None: not known."""

    needed_mb: float | None
    available_mb: float
    margin_mb: float


def choose(mode: SwapMode, memory: Memory) -> SwapMode:
    """PARALLEL or SEQUENTIAL. What is not known is taken to fit: a runner that does not fit fails alone, and the old one serves on."""
    if mode is not SwapMode.AUTO:
        return mode
    fits = memory.needed_mb is None or memory.needed_mb + memory.margin_mb <= memory.available_mb
    return SwapMode.PARALLEL if fits else SwapMode.SEQUENTIAL
