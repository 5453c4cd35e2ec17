"""Which build of a version a device gets, and for every other build the reason why it lost.

"rank" takes the best ranked build that fits. The other objectives compare a figure, but only figures of one kind: latencies of
one machine, accuracies by one metric over the same number of samples. A build that cannot be compared loses and says so, and
where nothing was measured the ranking decides and says so. Equal figures are decided by the ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from covey_contract.facts import Facts
from covey_profiles.candidate import Candidate
from covey_profiles.figures import apart, written
from covey_profiles.fitness import unfit
from covey_profiles.schema import Profile
from covey_profiles.targets import ranked_targets

Objective = Literal["rank", "latency", "accuracy", "size"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class Choice:
    """`lost`: for every other build, by its target, why it is not the one."""

    chosen: Candidate | None
    reason: str
    lost: dict[str, str]


@dataclass(frozen=True)
class _Figure:
    """A figure of a build. Only those of the same `scale` may be compared, and the lowest `value` wins."""

    scale: Hashable
    value: float
    shown: float  # as people read it
    digits: int  # significant ones, if that is enough to tell two apart
    unit: str = ""
    by: str = ""  # where or how it was measured, in words
    at_home: bool = False  # measured on the kind of device that asks

    def text(self) -> str:
        return written(self.shown, self.digits) + self.unit


def select(profile: Profile, facts: Facts, candidates: Sequence[Candidate], objective: Objective = "rank") -> Choice:
    """The build of one version that this device gets. Raises ValueError if two candidates have the same target."""
    if len({candidate.target for candidate in candidates}) != len(candidates):
        raise ValueError("two candidates have the same target")
    lost: dict[str, str] = {}
    fit: list[Candidate] = []
    for candidate in candidates:
        why = unfit(profile, facts, candidate)
        if why is None:
            fit.append(candidate)
        else:
            lost[candidate.target] = why
    if not fit:
        return Choice(None, f"none of {len(candidates)} builds fits {profile.id}" if candidates else "no builds", lost)
    order = {target: rank for rank, target in enumerate(ranked_targets(profile, facts))}
    fit.sort(key=lambda candidate: order[candidate.target])
    measure = _FIGURES.get(objective)
    if measure is None:
        return _by_rank(fit, lost, f"ranked highest for {profile.id}")
    figures = {candidate.target: figure for candidate in fit if (figure := measure(profile, candidate)) is not None}
    if not figures:
        return _by_rank(fit, lost, f"ranked highest for {profile.id}; no {objective} was measured to choose by")
    return _by_figure(fit, lost, figures, objective)


def _by_rank(fit: Sequence[Candidate], lost: dict[str, str], reason: str) -> Choice:
    best = fit[0]
    for candidate in fit[1:]:
        lost[candidate.target] = f"ranked lower: {best.target} before {candidate.target}"
    alone = "the only build that fits; " if len(fit) == 1 else ""
    return Choice(best, alone + reason, lost)


def _by_figure(
    fit: Sequence[Candidate], lost: dict[str, str], figures: dict[str, _Figure], objective: Objective
) -> Choice:
    """`fit` is in the order of the ranking, so that the first of equals is the best ranked."""
    scale = _common_scale(fit, figures)
    comparable = [c for c in fit if c.target in figures and figures[c.target].scale == scale]
    best = min(comparable, key=lambda candidate: figures[candidate.target].value)
    won = figures[best.target]
    for candidate in fit:
        figure = figures.get(candidate.target)
        if candidate is best:
            continue
        if figure is None:
            lost[candidate.target] = f"no {objective} was measured"
        elif figure.scale != scale:
            lost[candidate.target] = f"not comparable: {figure.text()} {figure.by}, {best.target} {won.by}"
        elif figure.value == won.value:
            lost[candidate.target] = (
                f"equal {objective} ({won.text()}), ranked lower: {best.target} before {candidate.target}"
            )
        else:
            sign = "<" if objective == "accuracy" else ">"
            mine, best_one = apart(figure.shown, won.shown, won.digits)
            words = f"{_WORSE[objective]}: {mine}{won.unit} {sign} {best_one}{won.unit} {won.by}"
            lost[candidate.target] = words.strip()
    elsewhere = "" if won.at_home or objective != "latency" else ", which is not a device of this kind"
    return Choice(best, f"{_BEST[objective]}: {won.text()} {won.by}".strip() + elsewhere, lost)


def _common_scale(fit: Sequence[Candidate], figures: dict[str, _Figure]) -> Hashable:
    """The scale to compare on: measured on a device of this kind before all others, then the one with most builds, then
    that of the best ranked build."""
    counts: dict[Hashable, int] = {}
    for figure in figures.values():
        counts[figure.scale] = counts.get(figure.scale, 0) + 1
    ranked = [figures[candidate.target] for candidate in fit if candidate.target in figures]
    return max(ranked, key=lambda figure: (figure.at_home, counts[figure.scale])).scale


def _latency(profile: Profile, candidate: Candidate) -> _Figure | None:
    measured = candidate.latency
    if measured is None:
        return None
    return _Figure(
        scale=(measured.machine, measured.profile),
        value=measured.p50_ms,
        shown=measured.p50_ms,
        digits=3,
        unit=" ms",
        by=f"measured on {measured.machine}",
        at_home=measured.profile == profile.id,
    )


def _accuracy(_: Profile, candidate: Candidate) -> _Figure | None:
    measured = candidate.accuracy
    if measured is None:
        return None
    return _Figure(
        scale=(measured.metric, measured.samples),
        value=-measured.build,
        shown=measured.build,
        digits=4,
        by=f"{measured.metric} over {measured.samples} samples",
    )


def _size(_: Profile, candidate: Candidate) -> _Figure | None:
    return _Figure(scale="bytes", value=candidate.size, shown=candidate.size, digits=3, unit=" bytes")


_FIGURES: dict[Objective, Callable[[Profile, Candidate], _Figure | None]] = {
    "latency": _latency,
    "accuracy": _accuracy,
    "size": _size,
}
_WORSE = {"latency": "slower", "accuracy": "less accurate", "size": "larger"}
_BEST = {"latency": "fastest", "accuracy": "most accurate", "size": "smallest"}
