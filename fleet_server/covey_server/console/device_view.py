"""Devices: the list as it is filtered, and all that one device's page shows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_contract.lifecycle import State
from covey_server.campaigns import choice
from covey_server.console import latency
from covey_server.console.i18n import gettext as _
from covey_server.console.latency import Curve, Health, Together
from covey_server.db.tables import AssignmentRow, Build, Campaign, Device, Reported, Sample, SampleFetch, Version
from covey_server.fleet import directory, groups
from covey_server.fleet.certificates import WARN_MS
from covey_server.fleet.directory import DeviceFilter
from covey_server.fleet.views import DeviceDetail, DeviceView, ModelOnDevice, ReportView
from covey_server.samples import fetches

PAGE = 50
MAX_CHOICES = 200
REPORTS = 150
DEPLOYMENTS = 12
CHART_MS = 3_600_000
CHART_WINDOWS = 1500
MAX_LINES = 4
# The engine names the build that won each time; here it stands above.
_RANKED = re.compile(r"^ranked lower: \S+ before \S+$")
RECENT_MS = 5 * 60_000
# A clock that is wrong by less is nobody's business.
WRONG_CLOCK_MS = 60_000


@dataclass(frozen=True)
class DevicePage:
    """`total` counts all that the filters let through."""

    items: list[DeviceView]
    next: str | None
    total: int


@dataclass(frozen=True)
class Choices:
    """What the filters offer. `runs`: model and version of what serves anywhere."""

    groups: list[str]
    profiles: list[str]
    runs: list[tuple[str, str]]


@dataclass(frozen=True)
class Reason:
    """One build that could have been chosen. `won` is the one that was."""

    target: str
    won: bool
    text: str


@dataclass(frozen=True)
class OnDevice:
    """A model on the device, with why it is this build and since when it serves."""

    held: ModelOnDevice
    since_ms: int | None
    health: Health
    together: Together | None
    summary: str
    reasons: list[Reason]


@dataclass(frozen=True)
class Step:
    """`took_ms` is None for the state that it is in."""

    state: str
    took_ms: int | None


@dataclass(frozen=True)
class Deployment:
    """All that the device reported of one order. Times of begin and end are ours, spans are the device's."""

    id: str
    model: str
    version: str
    target: str
    state: str
    reason: str
    detail: str
    kind: str
    campaign: str
    at_ms: int
    took_ms: int
    steps: list[Step]


@dataclass(frozen=True)
class SamplesHere:
    """The device's samples that are on the server, and the newest fetch of them."""

    count: int
    size: int
    fetch: SampleFetch | None

    @property
    def under_way(self) -> bool:
        return self.fetch is not None and self.fetch.ended_ms is None


@dataclass(frozen=True)
class DevicePageDetail:
    """`clock_ms` is how far the device's clock is behind ours, 0 where that is too little to tell. A certificate that ends before `warn_before_ms` is
    worth a warning."""

    device: DeviceDetail
    models: list[OnDevice]
    deployments: list[Deployment]
    chart: dict[str, Any]
    swaps: int
    clock_ms: int
    warn_before_ms: int
    samples: SamplesHere


def devices(session: Session, wanted: DeviceFilter, after: str) -> DevicePage:
    found = directory.list_devices(session, wanted, after, PAGE + 1)
    total = directory.count_devices(session, wanted)
    return DevicePage(found[:PAGE], found[PAGE - 1].id if len(found) > PAGE else None, total)


def choices(session: Session) -> Choices:
    profiles = session.scalars(select(Device.profile).distinct().where(Device.profile.is_not(None)).limit(MAX_CHOICES))
    serving = select(Reported.active).distinct().where(Reported.active.is_not(None))
    runs = session.execute(
        select(Version.model, Version.name)
        .join(Build, Build.version_id == Version.id)
        .where(Build.digest.in_(serving))
        .group_by(Version.model, Version.name, Version.id)
        .order_by(Version.model, Version.id.desc())
        .limit(MAX_CHOICES)
    )
    return Choices(groups.names(session), sorted(one for one in profiles if one), [(m, v) for m, v in runs])


def labels(session: Session, name: str) -> dict[str, str]:
    """Raises `NotFound`."""
    return dict(directory.get_device(session, name).labels)


def device(session: Session, name: str, now_ms: int) -> DevicePageDetail:
    """Raises `NotFound`."""
    detail = directory.device_detail(session, name)
    reports = directory.reports_of(session, name, None, REPORTS)
    measured = latency.windows_of(session, name, CHART_WINDOWS)
    clock_ms = latency.behind_ms(measured)
    # By the device's clock, which need not be ours: what it measured last is the end of the chart.
    found = sorted(
        (one for one in measured if abs(measured[-1].end_ms - one.end_ms) <= CHART_MS), key=lambda one: one.end_ms
    )
    models = [_on_device(session, detail.id, held, reports, measured, now_ms) for held in detail.models]
    chart, swaps = _chart(session, detail, found)
    wrong = clock_ms if abs(clock_ms) >= WRONG_CLOCK_MS and detail.online else 0
    deployments, samples = _deployments(session, reports), _samples(session, name)
    return DevicePageDetail(detail, models, deployments, chart, swaps, wrong, now_ms + WARN_MS, samples)


def _samples(session: Session, device: str) -> SamplesHere:
    count, size = session.execute(
        select(func.count(), func.coalesce(func.sum(Sample.size), 0)).where(Sample.device == device)
    ).one()
    return SamplesHere(count, int(size), next(iter(fetches.fetches_of(session, device, 1)), None))


def _targets(session: Session, digests: Iterable[str]) -> dict[str, str]:
    rows = session.execute(select(Build.digest, Build.target).where(Build.digest.in_(sorted(set(digests)))))
    return {str(digest): target for digest, target in rows}


def _deployments(session: Session, reports: list[ReportView]) -> list[Deployment]:
    """The newest first; of `reports`, newest first, those of one order together."""
    orders: dict[tuple[str, str], list[ReportView]] = {}
    for report in reports:
        orders.setdefault((report.assignment, report.model), []).append(report)
    shown = [list(reversed(held)) for held in orders.values()][:DEPLOYMENTS]
    targets = _targets(session, [held[-1].build for held in shown])
    rows = session.execute(
        select(AssignmentRow.id, AssignmentRow.kind, func.coalesce(Campaign.name, ""))
        .outerjoin(Campaign, Campaign.id == AssignmentRow.campaign_id)
        .where(AssignmentRow.id.in_([held[-1].assignment for held in shown]))
    )
    orders_by = {order: (kind, campaign) for order, kind, campaign in rows}
    latest: set[str] = set()
    made = []
    for held in shown:
        one = _deployment(held, targets, *orders_by.get(held[-1].assignment, ("", "")))
        made.append(replace(one, state="replaced") if one.state == State.ACTIVE and one.model in latest else one)
        if one.state == State.ACTIVE:
            latest.add(one.model)
    return made


def _deployment(held: list[ReportView], targets: dict[str, str], kind: str, campaign: str) -> Deployment:
    """From the reports of one order, oldest first."""
    last = held[-1]
    begins: list[ReportView] = []
    for report in held:
        if not begins or begins[-1].state != report.state:
            begins.append(report)
    ends = [*(one.at_ms for one in begins[1:]), None]
    steps = [
        Step(one.state, None if end is None else max(end - one.at_ms, 0)) for one, end in zip(begins, ends, strict=True)
    ]
    told = next((one for one in reversed(held) if one.reason != "none" or one.detail), last)
    return Deployment(
        id=f"{last.model}-{last.seq}",
        model=last.model,
        version=last.version,
        target=targets.get(last.build, ""),
        state=last.state,
        reason=told.reason,
        detail=told.detail,
        kind=kind,
        campaign=campaign,
        at_ms=last.received_ms,
        took_ms=max(begins[-1].at_ms - held[0].at_ms, 0),
        steps=steps,
    )


def _on_device(
    session: Session,
    device: str,
    held: ModelOnDevice,
    reports: list[ReportView],
    found: list[latency.Window],
    now_ms: int,
) -> OnDevice:
    digest = held.active.digest if held.active is not None else None
    since = next(
        (
            one.received_ms
            for one in reports
            if one.build == digest and one.state == State.ACTIVE and one.model == held.model
        ),
        None,
    )
    recent = [one for one in found if one.build == digest and one.received_ms > now_ms - RECENT_MS]
    why = held.desired.why if held.desired is not None else {}
    if held.desired is not None and "chosen" not in why:
        # An order back or by hand names no choice; the choice among this version's builds is what the reader asks for.
        why = choice.why(session, device, held.model, held.desired.version)
    summary, reasons = explain(why, held.desired.target if held.desired is not None else None)
    return OnDevice(held, since, latency.health(recent), latency.rows_together(recent), summary, reasons)


def _chart(session: Session, detail: DeviceDetail, found: list[latency.Window]) -> tuple[dict[str, Any], int]:
    """One line pair for each build that served in the time, the newest ones; a mark wherever the build changes."""
    order = list(dict.fromkeys(one.build for one in reversed(found)))[:MAX_LINES]
    versions = {one.build: one.version for one in found}
    targets = _targets(session, order)
    drawn = [
        Curve(f"{versions[build]} {targets.get(build, '')}".strip(), frozenset({build})) for build in reversed(order)
    ]
    chart = latency.chart(found, drawn, detail.id)
    last: str | None = None
    for one in found:
        if one.build != last:
            if last is not None:
                chart.marks.append(
                    {"t": one.start_ms / 1000, "text": _("swap to %(version)s") % {"version": one.version}}
                )
            last = one.build
    chart.marks = chart.marks[-6:]
    return chart.to_json(), len(chart.marks)


def explain(why: dict[str, Any], target: str | None) -> tuple[str, list[Reason]]:
    """The words of a choice: one sentence, and each build's reason, the chosen one first.

    `why` is `covey_server.campaigns.choice.Chosen.why`; an order made by hand may lack all of it.
    """
    chosen = why.get("chosen") or {}
    summary = str(chosen.get("reason") or why.get("reason") or _("ordered by hand"))
    reasons = [Reason(target, True, summary)] if target is not None else []
    reasons += [
        Reason(str(one["target"]), False, _RANKED.sub(_("could run here, ranked lower"), str(one["reason"])))
        for one in why.get("lost", ())
    ]
    return summary, reasons
