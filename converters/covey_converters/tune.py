"""Searches recipes and precisions for what is best: each recipe of each target is built, judged and measured, one after the other.

No figure says alone which build is best. What is left is the front: the builds within the budget of which no other one is at least
as fast, as small and as accurate, and better in one of these. All latencies are of this machine, with the source beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from covey_contract.building import BuildReport, Outcome
from covey_converters.backends import backend_for
from covey_converters.errors import UnsupportedError
from covey_converters.isolation import build_isolated
from covey_converters.spec import BuildSpec, Limits

Say = Callable[[str], None]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe of one target. `quality` is higher where the build is better, and the same figure for all points of a model."""

    target: str
    recipe: str
    outcome: Outcome
    reason: str = ""
    size: int = 0  # bytes
    p50_ms: float | None = None
    quality: float | None = None
    quality_of: str = ""  # what `quality` is
    on_front: bool = False
    seconds: float = 0.0


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """All that was tried of one model, on one machine."""

    source: str
    budget: float
    source_size: int = 0
    source_p50_ms: float | None = None  # in ONNX Runtime FP32, the median over the runs beside each build
    machine: str = ""
    points: tuple[Point, ...] = ()


def candidates(targets: Iterable[str], *, calibrated: bool) -> tuple[list[tuple[str, str]], list[Point]]:
    """Target and recipe of everything to try, and the targets that have nothing to try, with the reason."""
    found: list[tuple[str, str]] = []
    without: list[Point] = []
    for target in targets:
        backend, precision = backend_for(target)
        try:
            found += [(target, recipe) for recipe in backend.recipes(precision, calibrated=calibrated)]
        except UnsupportedError as error:
            without.append(Point(target=target, recipe="", outcome=Outcome.UNSUPPORTED, reason=str(error)))
    return found, without


def search(spec: BuildSpec, limits: Limits, targets: Sequence[str], say: Say) -> Study:
    """Try everything, each in a build process of its own; `spec.work` holds what is scratch. `say` is told of each try."""
    tries, points = candidates(targets, calibrated=spec.calibration is not None)
    reports: list[BuildReport] = []
    for number, (target, recipe) in enumerate(tries, start=1):
        say(f"{number}/{len(tries)} {target}: {recipe}")
        out = Path(spec.work) / f"tried-{number}"
        one = msgspec.structs.replace(spec, target=target, recipe=recipe, out=str(out))
        report = build_isolated(one, limits)
        reports.append(report)
        points.append(point_of(report, recipe))
    latencies = sorted(report.source_latency.p50_ms for report in reports if report.source_latency)
    return Study(
        source=Path(spec.source).name,
        budget=spec.budget,
        source_size=max((report.source_size for report in reports), default=0),
        source_p50_ms=latencies[len(latencies) // 2] if latencies else None,
        machine=next((report.latency.machine for report in reports if report.latency), ""),
        points=tuple(marked(points)),
    )


def point_of(report: BuildReport, recipe: str) -> Point:
    quality, what = _quality(report)
    return Point(
        target=report.target,
        recipe=recipe,
        outcome=report.outcome,
        reason=report.reason,
        size=report.size,
        p50_ms=report.latency.p50_ms if report.latency else None,
        quality=quality,
        quality_of=what,
        seconds=report.seconds,
    )


def _quality(report: BuildReport) -> tuple[float | None, str]:
    """The task's metric; without one the agreement with the source, or how well the worst column is kept."""
    if report.accuracy is not None:
        return report.accuracy.build, report.accuracy.metric
    outputs = report.parity.values()
    agreements = [one.top1_agreement for one in outputs if one.top1_agreement is not None]
    if agreements:
        return min(agreements), "top-1 agreement with the source"
    errors = [one.column_error for one in outputs if one.column_error is not None]
    if errors:
        return 1 - max(errors), "1 - error of the worst column"
    return min((one.cosine for one in outputs), default=None), "cosine to the source"


def marked(points: Sequence[Point]) -> list[Point]:
    """The same points, with `on_front` where no other one is better all in all."""
    return [
        msgspec.structs.replace(one, on_front=_eligible(one) and not any(_dominates(other, one) for other in points))
        for one in points
    ]


def _eligible(point: Point) -> bool:
    return point.outcome is Outcome.BUILT and point.p50_ms is not None and point.quality is not None


def _dominates(a: Point, b: Point) -> bool:
    if not _eligible(a) or not _eligible(b):
        return False
    ours, theirs = _costs(a), _costs(b)
    return ours != theirs and all(one <= other for one, other in zip(ours, theirs, strict=True))


def _costs(point: Point) -> tuple[float, float, float]:
    return point.p50_ms or 0.0, float(point.size), -(point.quality or 0.0)
