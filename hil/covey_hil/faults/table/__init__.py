"""The named cases: what is broken, when, what must hold, and the test that does it with real parts."""

from __future__ import annotations

from covey_hil.faults.table import ages, builds, damage, disks, network, processes
from covey_hil.faults.table.case import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = (
    *processes.CASES,
    *disks.CASES,
    *damage.CASES,
    *ages.CASES,
    *builds.CASES,
    *network.CASES,
)
