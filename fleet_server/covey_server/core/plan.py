"""Who goes in which stage. Pure: the same target, builds and seed give the same plan.

A stage takes a named group, or fills up to a cumulative share or number of the whole target. What an earlier stage took no
later one takes again. A draw is seeded, recorded, and spread over profiles in proportion, so that a canary is not by chance
all of one kind.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from covey_server.core.spec import Stage


@dataclass(frozen=True)
class Candidate:
    """A device of the target. `left_out` says why it gets no build; None: it gets one."""

    device: str
    profile: str | None
    left_out: str | None = None


@dataclass(frozen=True)
class PlannedStage:
    index: int
    name: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    device: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """`stages` in order, each device in at most one; `left_out` are those of the target that get nothing, and why."""

    stages: tuple[PlannedStage, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    seed: int


def make_plan(
    stages: Sequence[Stage], candidates: Sequence[Candidate], groups: Mapping[str, Collection[str]], seed: int
) -> Plan:
    """Divide `candidates` among `stages`. `groups` holds the members of each group that a stage names."""
    left_out = [LeftOut(each.device, each.left_out) for each in candidates if each.left_out is not None]
    remaining = {each.device: each.profile for each in candidates if each.left_out is None}
    total = len(remaining)
    order = spread(remaining, seed)
    planned: list[PlannedStage] = []
    placed = 0
    for index, stage in enumerate(stages):
        if stage.group is not None:
            members = groups[stage.group]
            taken = [device for device in order if device in members and device in remaining]
        else:
            wanted = max(_cumulative(stage, total) - placed, 0)
            taken = [device for device in order if device in remaining][:wanted]
        for device in taken:
            del remaining[device]
        placed += len(taken)
        planned.append(PlannedStage(index, stage.name, tuple(sorted(taken))))
    left_out += [LeftOut(device, "no stage takes it") for device in remaining]
    return Plan(tuple(planned), tuple(left_out), tuple(_warnings(stages, planned, left_out, total)), seed)


def spread(profiles: Mapping[str, str | None], seed: int) -> list[str]:
    """All devices in a drawn order of which every beginning holds each profile in proportion, as near as whole devices allow."""
    by_profile: dict[str, list[tuple[bytes, str]]] = {}
    for device, profile in profiles.items():
        by_profile.setdefault(profile or "", []).append((_lot(seed, device), device))
    ranked: list[tuple[float, bytes, str]] = []
    for drawn in by_profile.values():
        drawn.sort()
        ranked += [((rank + 0.5) / len(drawn), lot, device) for rank, (lot, device) in enumerate(drawn)]
    ranked.sort()
    return [device for _, _, device in ranked]


def _lot(seed: int, device: str) -> bytes:
    return hashlib.sha256(f"{seed}/{device}".encode()).digest()


def _cumulative(stage: Stage, total: int) -> int:
    """How many of `total` are to be placed once this stage is; at least one where there is any."""
    if stage.percent is not None:
        # A rounding error must not leave one device out of 100 percent, nor take one more than asked.
        return min(math.ceil(round(total * stage.percent / 100, 6)), total)
    return min(stage.count or 0, total)


def _warnings(
    stages: Sequence[Stage], planned: Sequence[PlannedStage], left_out: Sequence[LeftOut], total: int
) -> list[str]:
    warnings = []
    if total == 0:
        warnings.append("no device of the target gets a build")
    for stage, plan in zip(stages, planned, strict=True):
        if not plan.devices and total:
            why = f"no device of group {stage.group} is left for it" if stage.group else "earlier stages took them all"
            warnings.append(f"stage {stage.name} is empty: {why}")
    reasons = Counter(each.reason for each in left_out)
    warnings += [f"{count} left out: {reason}" for reason, count in sorted(reasons.items())]
    return warnings
