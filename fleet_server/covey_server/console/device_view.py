"""Devices: the list as it is filtered, and all that one device's page shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.lifecycle import State
from covey_server.console import latency
from covey_server.console.latency import Health
from covey_server.db.tables import Build, Device, TelemetryRow
from covey_server.fleet import directory, groups
from covey_server.fleet.directory import DeviceFilter
from covey_server.fleet.views import DeviceDetail, DeviceView, ModelOnDevice, ReportView

PAGE = 50
REPORTS = 40
CHART_MS = 3_600_000
CHART_WINDOWS = 1500
MAX_LINES = 4


@dataclass(frozen=True)
class DevicePage:
    items: list[DeviceView]
    next: str | None


@dataclass(frozen=True)
class Choices:
    """What the filters offer."""

    groups: list[str]
    profiles: list[str]


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
    summary: str
    reasons: list[Reason]


@dataclass(frozen=True)
class DevicePageDetail:
    device: DeviceDetail
    models: list[OnDevice]
    reports: list[ReportView]
    chart: dict[str, Any]
    swaps: int


def devices(session: Session, wanted: DeviceFilter, after: str) -> DevicePage:
    found = directory.list_devices(session, wanted, after, PAGE + 1)
    return DevicePage(found[:PAGE], found[PAGE - 1].id if len(found) > PAGE else None)


def choices(session: Session) -> Choices:
    profiles = session.scalars(select(Device.profile).distinct().where(Device.profile.is_not(None)).limit(200))
    return Choices(groups.names(session), sorted(one for one in profiles if one))


def device(session: Session, name: str, now_ms: int) -> DevicePageDetail:
    """Raises `NotFound`."""
    detail = directory.device_detail(session, name)
    reports = directory.reports_of(session, name, None, REPORTS)
    newest = session.scalar(
        select(TelemetryRow.end_ms).where(TelemetryRow.device == name).order_by(TelemetryRow.end_ms.desc()).limit(1)
    )
    # By the device's clock, which need not be ours: what it measured last is the end of the chart.
    found = (
        latency.windows(session, device=name, since_ms=newest - CHART_MS, limit=CHART_WINDOWS)
        if newest is not None
        else []
    )
    models = [_on_device(held, reports, found, now_ms) for held in detail.models]
    chart, swaps = _chart(session, detail, found)
    return DevicePageDetail(detail, models, reports, chart, swaps)


def _on_device(held: ModelOnDevice, reports: list[ReportView], found: list[latency.Window], now_ms: int) -> OnDevice:
    digest = held.active.digest if held.active is not None else None
    since = next(
        (one.at_ms for one in reports if one.build == digest and one.state == State.ACTIVE and one.model == held.model),
        None,
    )
    recent = [one for one in found if one.build == digest and one.end_ms > now_ms - 5 * 60_000]
    why = held.desired.why if held.desired is not None else {}
    summary, reasons = explain(why, held.desired.target if held.desired is not None else None)
    return OnDevice(held, since, latency.health(recent), summary, reasons)


def _chart(session: Session, detail: DeviceDetail, found: list[latency.Window]) -> tuple[dict[str, Any], int]:
    """One line pair for each build that served in the time, the newest ones; a mark wherever the build changes."""
    order = list(dict.fromkeys(one.build for one in reversed(found)))[:MAX_LINES]
    versions = {one.build: one.version for one in found}
    targets = {
        str(digest): target
        for digest, target in session.execute(select(Build.digest, Build.target).where(Build.digest.in_(order)))
    }
    drawn = [(f"{versions[build]} {targets.get(build, '')}".strip(), frozenset({build})) for build in reversed(order)]
    chart = latency.chart(found, drawn, f"Latency on {detail.id}")
    last: str | None = None
    for one in found:
        if one.build != last:
            if last is not None:
                chart.marks.append({"t": one.start_ms / 1000, "text": f"swap to {one.version}"})
            last = one.build
    chart.marks = chart.marks[-6:]
    return chart.to_json(), len(chart.marks)


def explain(why: dict[str, Any], target: str | None) -> tuple[str, list[Reason]]:
    """The words of a choice: one sentence, and each build's reason, the chosen one first.

    `why` is `covey_server.campaigns.choice.Chosen.why`; an order made by hand may lack all of it.
    """
    chosen = why.get("chosen") or {}
    summary = str(chosen.get("reason") or why.get("reason") or "ordered by hand")
    reasons = [Reason(target, True, summary)] if target is not None else []
    reasons += [Reason(str(one["target"]), False, str(one["reason"])) for one in why.get("lost", ())]
    return summary, reasons
