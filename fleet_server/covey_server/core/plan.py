"""Who goes in which stage. Pure: the same target, builds and seed give the same plan.

A stage takes a named group, or fills up to a cumulative share or number of the whole target. What an earlier stage took no
later one takes again. A draw is seeded, recorded, and spread over profiles in proportion, so that a canary is not by chance
all of one kind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from covey_server.core.draw import Permutation, lot_of, share
from covey_server.core.spec import Stage

NO_STAGE = "no stage takes it"


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
            wanted = max(cumulative(stage, total) - placed, 0)
            taken = [device for device in order if device in remaining][:wanted]
        for device in taken:
            del remaining[device]
        placed += len(taken)
        planned.append(PlannedStage(index, stage.name, tuple(sorted(taken))))
    left_out += [LeftOut(device, NO_STAGE) for device in remaining]
    sizes = [len(each.devices) for each in planned]
    reasons = Counter(each.reason for each in left_out)
    return Plan(tuple(planned), tuple(left_out), tuple(warnings(stages, sizes, reasons, total)), seed)


def spread(profiles: Mapping[str, str | None], seed: int) -> list[str]:
    """All devices in a drawn order of which every beginning holds each profile in proportion, as near as whole devices allow."""
    permutation = Permutation.of(seed)
    by_profile: dict[str, list[tuple[int, str]]] = {}
    for device, profile in profiles.items():
        by_profile.setdefault(profile or "", []).append((permutation.place(lot_of(device)), device))
    ranked: list[tuple[int, int, str]] = []
    for drawn in by_profile.values():
        drawn.sort()
        ranked += [(share(rank, len(drawn)), place, device) for rank, (place, device) in enumerate(drawn)]
    ranked.sort()
    return [device for _, _, device in ranked]


def cumulative(stage: Stage, total: int) -> int:
    """How many of `total` are to be placed once this stage is; at least one where there is any."""
    if stage.percent is not None:
        # A rounding error must not leave one device out of 100 percent, nor take one more than asked.
        return min(math.ceil(round(total * stage.percent / 100, 6)), total)
    return min(stage.count or 0, total)


def warnings(stages: Sequence[Stage], sizes: Sequence[int], left_out: Mapping[str, int], total: int) -> list[str]:
    """What whoever plans should know: `sizes` of the stages, how many are left out for which reason, how many get a build."""
    found = []
    if total == 0:
        found.append("no device of the target gets a build")
    for stage, size in zip(stages, sizes, strict=True):
        if not size and total:
            why = f"no device of group {stage.group} is left for it" if stage.group else "earlier stages took them all"
            found.append(f"stage {stage.name} is empty: {why}")
    return found + [f"{count} left out: {reason}" for reason, count in sorted(left_out.items())]
