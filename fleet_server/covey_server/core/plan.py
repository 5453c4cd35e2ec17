"""Who goes in which stage. Pure: the same target, builds and seed give the same plan.

A stage takes a named group, the devices of a selector or of one site or profile, or fills up to a cumulative share or number, of
the whole target or of each site or profile. What an earlier stage took no later one takes again. A draw is seeded, recorded, and
spread in proportion over profiles and, within each, over sites, so that a canary is not by chance all of one kind.

`covey_server.campaigns.drawing` says the same in SQL, for a million devices; a test holds the two together.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from covey_server.core.draw import Permutation, lot_of, share
from covey_server.core.spec import Draw, Each, Stage
from covey_server.core.spec.campaign import MAX_STAGES

NO_STAGE = "no stage takes it"
ENOUGH = "the target takes no more"

_NAME_CHARS = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LENGTH = 64


@dataclass(frozen=True)
class Candidate:
    """A device of the target. `left_out` says why it gets no build; None: it gets one."""

    device: str
    profile: str | None
    left_out: str | None = None
    site: str = ""
    criticality: int = 0


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


class TooManyStagesError(Exception):
    """One stage for each profile or site would be more stages than a campaign may have."""


def make_plan(
    stages: Sequence[Stage],
    candidates: Sequence[Candidate],
    members: Mapping[int, Collection[str]],
    seed: int,
    draw: Draw = "spread",
    at_most: int | None = None,
) -> Plan:
    """Divide `candidates` among `stages`, none of which stands for several (see `expanded`). `members` holds the devices of the
    group or selector of each stage that names one."""
    left_out = [LeftOut(each.device, each.left_out) for each in candidates if each.left_out is not None]
    fit = [each for each in candidates if each.left_out is None]
    orders = {kind: drawn(fit, seed, kind) for kind in {draw, *(stage.draw or draw for stage in stages)}}
    taken: dict[str, int] = {}
    if at_most is not None:
        beyond = {each.device for each in orders[draw][at_most:]}
        left_out += [LeftOut(device, ENOUGH) for device in sorted(beyond)]
        fit = [each for each in fit if each.device not in beyond]
        orders = {kind: [each for each in order if each.device not in beyond] for kind, order in orders.items()}
    for index, stage in enumerate(stages):
        remaining = [each for each in orders[stage.draw or draw] if each.device not in taken]
        placed = Counter(kind_of(each, stage.each) for each in fit if each.device in taken)
        totals = Counter(kind_of(each, stage.each) for each in fit)
        for each in remaining:
            kind = kind_of(each, stage.each)
            if takes(stage, each.device in members.get(index, ()), kind, totals[kind], placed[kind]):
                taken[each.device] = index
                placed[kind] += 1
    left_out += [LeftOut(each.device, NO_STAGE) for each in fit if each.device not in taken]
    planned = [
        PlannedStage(index, stage.name, tuple(sorted(device for device, where in taken.items() if where == index)))
        for index, stage in enumerate(stages)
    ]
    sizes = [len(each.devices) for each in planned]
    reasons = Counter(each.reason for each in left_out)
    return Plan(tuple(planned), tuple(left_out), tuple(warnings(stages, sizes, reasons, len(fit))), seed)


def takes(stage: Stage, is_member: bool, kind: str, total: int, placed: int) -> bool:
    """Whether the stage takes one more device: a member of its group or selector, or of this kind, of which the target has
    `total` and stages up to this one have `placed`."""
    if stage.group is not None or stage.select is not None:
        return is_member
    if stage.only is not None:
        return kind == stage.only
    return placed < cumulative(stage, total)


def kind_of(device: Candidate, each: Each | None) -> str:
    """What a stage's `each` tells devices apart by; the same for all where it names nothing."""
    return _kind(device.profile or "", device.site, each)


def drawn(devices: Collection[Candidate], seed: int, draw: Draw = "spread") -> list[Candidate]:
    """All devices in a drawn order. Of `spread`, every beginning holds each profile in proportion, as near as whole devices
    allow, and of each profile's devices each site's; of `least_critical` likewise within those of equal criticality."""
    permutation = Permutation.of(seed)
    place = {each.device: permutation.place(lot_of(each.device)) for each in devices}
    if draw == "random":
        return sorted(devices, key=lambda each: (place[each.device], each.device))
    first = {each.device: each.criticality if draw == "least_critical" else 0 for each in devices}
    within = dict(_shares(devices, place, lambda each: (first[each.device], each.profile or "", each.site), {}))
    across = dict(_shares(devices, place, lambda each: (first[each.device], each.profile or ""), within))
    return sorted(devices, key=lambda each: (first[each.device], across[each.device], place[each.device], each.device))


def _shares(
    devices: Collection[Candidate],
    place: Mapping[str, int],
    stratum: Callable[[Candidate], tuple[int | str, ...]],
    before: Mapping[str, int],
) -> Iterator[tuple[str, int]]:
    """Each device's share of its stratum, in the order of `before`, then as drawn."""
    strata: dict[tuple[int | str, ...], list[tuple[int, int, str]]] = {}
    for each in devices:
        key = (before.get(each.device, 0), place[each.device], each.device)
        strata.setdefault(stratum(each), []).append(key)
    for keys in strata.values():
        keys.sort()
        yield from ((device, share(rank, len(keys))) for rank, (_, _, device) in enumerate(keys))


def cumulative(stage: Stage, total: int) -> int:
    """How many of `total` are to be placed once this stage is; at least one where there is any."""
    if stage.percent is not None:
        # A rounding error must not leave one device out of 100 percent, nor take one more than asked.
        return min(math.ceil(round(total * stage.percent / 100, 6)), total)
    return min(stage.count or 0, total)


def expanded(stages: Sequence[Stage], kinds: Mapping[Each, Mapping[str, int]]) -> tuple[Stage, ...]:
    """Stages that stand for one after the other, written out: those with the fewest devices first. `kinds` holds how many
    devices of the target each profile and site has. Raises `TooManyStagesError`."""
    written: list[Stage] = []
    names = {stage.name for stage in stages}
    for stage in stages:
        if not stage.one_by_one or stage.each is None:
            written.append(stage)
            continue
        for kind, _ in sorted(kinds[stage.each].items(), key=lambda item: (item[1], item[0])):
            name = _named(stage.name, kind, names)
            names.add(name)
            written.append(msgspec.structs.replace(stage, name=name, only=kind))
    if len(written) > MAX_STAGES:
        raise TooManyStagesError(f"makes {len(written)} stages; at most {MAX_STAGES}")
    return tuple(written)


def _named(stage: str, kind: str, taken: Collection[str]) -> str:
    """A name for the stage of one kind that is none of `taken`."""
    tail = _NAME_CHARS.sub("-", kind).strip("-") or "other"
    name = f"{stage}-{tail}"[:_NAME_LENGTH]
    number = 2
    while name in taken:
        end = f"-{number}"
        name, number = f"{stage}-{tail}"[: _NAME_LENGTH - len(end)] + end, number + 1
    return name


def warnings(stages: Sequence[Stage], sizes: Sequence[int], left_out: Mapping[str, int], total: int) -> list[str]:
    """What whoever plans should know: `sizes` of the stages, how many are left out for which reason, how many get a build."""
    found = []
    if total == 0:
        found.append("no device of the target gets a build")
    for stage, size in zip(stages, sizes, strict=True):
        if not size and total:
            why = f"no device of group {stage.group} is left for it" if stage.group else "earlier stages took them all"
            if stage.select is not None:
                why = "no device that it selects is left for it"
            found.append(f"stage {stage.name} is empty: {why}")
    return found + [f"{count} left out: {reason}" for reason, count in sorted(left_out.items())]


def biased(
    stages: Sequence[Stage], profiles: Sequence[Mapping[str, int]], sites: Sequence[Mapping[str, int]]
) -> list[str]:
    """Where a stage cannot speak for those after it: `profiles` and `sites` of each stage's devices. Devices of one site share its
    troubles, and a verdict on them alone takes those for the version's; a profile that a canary lacks is not judged by it."""
    found = []
    filled = [index for index, kinds in enumerate(profiles) if kinds]
    for index in filled[:-1]:
        here = stages[index]
        later = [other for other in filled if other > index]
        other_sites = {site for other in later for site in sites[other]} - set(sites[index])
        if len(sites[index]) == 1 and other_sites:
            site = next(iter(sites[index])) or "without a site"
            found.append(
                f"stage {here.name} is all of one site ({site}); its verdict cannot tell the site's troubles from the version's"
            )
        missing = sorted({profile for other in later for profile in profiles[other]} - set(profiles[index]))
        if index == filled[0] and missing:
            named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            found.append(f"stage {here.name} has no device of profile {named}; the first of them are in a later stage")
    return found


@dataclass(frozen=True)
class Newcomer:
    """A device that has come to match a live campaign. `matches`: the stages whose group or selector it is in."""

    candidate: Candidate
    matches: frozenset[int] = frozenset()


def place(
    newcomers: Sequence[Newcomer], stages: Sequence[Stage], start: int, placed: Mapping[tuple[int, str, str], int]
) -> dict[str, int]:
    """The stage of each newcomer, as if it had been there from the beginning, but none before `start`; who is missing gets none.
    `placed`: how many devices there are of a stage, profile and site."""
    eaches: set[Each | None] = {stage.each for stage in stages}
    totals: dict[Each | None, Counter[str]] = {each: Counter() for each in eaches}
    so_far: dict[Each | None, list[Counter[str]]] = {each: [Counter() for _ in stages] for each in eaches}
    for (stage_index, profile, site), number in placed.items():
        for each in eaches:
            kind = _kind(profile, site, each)
            totals[each][kind] += number
            for later in range(max(stage_index, 0), len(stages) if stage_index >= 0 else 0):
                so_far[each][later][kind] += number
    found: dict[str, int] = {}
    for newcomer in newcomers:
        profile, site = newcomer.candidate.profile or "", newcomer.candidate.site
        for each in eaches:
            totals[each][_kind(profile, site, each)] += 1
        for index in range(start, len(stages)):
            stage = stages[index]
            kind = _kind(profile, site, stage.each)
            placed_here = so_far[stage.each][index][kind]
            if takes(stage, index in newcomer.matches, kind, totals[stage.each][kind], placed_here):
                for each in eaches:
                    for later in range(index, len(stages)):
                        so_far[each][later][_kind(profile, site, each)] += 1
                found[newcomer.candidate.device] = index
                break
    return found


def _kind(profile: str, site: str, each: Each | None) -> str:
    return "" if each is None else site if each == "site" else profile
