"""Is the fleet well? What the first page shows, in a fixed number of bounded queries."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from covey_contract.lifecycle import BAD
from covey_server.campaigns import views as campaign_views
from covey_server.campaigns.views import CampaignSummary, CampaignView
from covey_server.console import latency, words
from covey_server.console.latency import Health, Tally
from covey_server.core.engine import ACTIVE
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignEvent,
    Desired,
    Device,
    Reported,
    ReportRow,
    Version,
)

RECENT_MS = 5 * 60_000
MAX_SHOWN_CAMPAIGNS = 6
ENDED_CAMPAIGNS = 3
EVENTS = 10
BAD_ERROR_RATE = 0.01
# Every campaign has them, and its own page shows them.
_ROUTINE = ("assigned", "stage_started", "restoring", "rolling_back")
MAX_ROWS = 400


@dataclass(frozen=True)
class Devices:
    total: int
    online: int
    simulated: int
    off_target: int  # hold another build than they should
    troubled: int  # their newest deployment ended badly


@dataclass
class ServedVersion:
    """One version of a model, as the fleet serves it now."""

    version: str
    devices: int = 0
    simulated: int = 0
    targets: Counter[str] = field(default_factory=Counter)
    health: Health = field(default_factory=Health)


@dataclass(frozen=True)
class ServedModel:
    model: str
    versions: list[ServedVersion]
    devices: int


@dataclass(frozen=True)
class Happening:
    """`tone` as in `words.Look`; `link` is a page of the console."""

    at_ms: int
    tone: str
    who: str
    text: str
    link: str


@dataclass(frozen=True)
class FleetView:
    """`campaigns` are those under way, `ended` the newest others. Quantiles reach back `span_ms`, counts `RECENT_MS`."""

    devices: Devices
    models: list[ServedModel]
    health: Health
    span_ms: int
    campaigns: list[CampaignView]
    ended: list[CampaignSummary]
    happenings: list[Happening]

    @property
    def sampled(self) -> bool:
        return self.span_ms < RECENT_MS

    @property
    def troubles(self) -> list[tuple[str, str, str]]:
        """What is not well: a tone, a sentence, and the page to look at. The worst first."""
        found = []
        devices, health = self.devices, self.health
        if health.error_rate is not None and health.error_rate > BAD_ERROR_RATE:
            found.append(("bad", f"{words.percent(health.error_rate)} of all requests fail", "#serving"))
        if devices.troubled:
            found.append(("bad", f"the last deployment failed on {_devices_in_words(devices.troubled)}", "/devices"))
        found += [
            (
                "bad" if one.state == "halted" else "warn",
                f"{one.name} is {words.look(one.state).text}",
                f"/campaigns/{one.name}",
            )
            for one in self.campaigns
            if one.state != "running"
        ]
        if devices.online < devices.total:
            away = devices.total - devices.online
            found.append(("warn", f"{_devices_in_words(away)} offline", "/devices?online=no"))
        return found


def _devices_in_words(count: int) -> str:
    return f"{words.number(count)} device{'' if count == 1 else 's'}"


def fleet(session: Session, now_ms: int) -> FleetView:
    models, health, span_ms = _models(session, now_ms)
    campaigns = _campaigns(session, now_ms)
    running = {one.name for one in campaigns}
    newest, _ = campaign_views.list_campaigns(session, ENDED_CAMPAIGNS + MAX_SHOWN_CAMPAIGNS)
    ended = [one for one in newest if one.name not in running and one.started_ms is not None][:ENDED_CAMPAIGNS]
    return FleetView(_devices(session), models, health, span_ms, campaigns, ended, _happenings(session))


def _devices(session: Session) -> Devices:
    row = session.execute(
        select(
            func.count(),
            func.sum(case((Device.online, 1), else_=0)),
            func.sum(case((Device.simulated, 1), else_=0)),
        ).where(Device.revoked_ms.is_(None))
    ).one()
    # Nothing is off target that is to be removed, or that the server has no word of yet.
    off_target = session.scalar(
        select(func.count(Desired.device.distinct()))
        .join(AssignmentRow, AssignmentRow.id == Desired.assignment)
        .join(Build, Build.id == AssignmentRow.build_id)
        .join(Device, and_(Device.id == Desired.device, Device.revoked_ms.is_(None)))
        .outerjoin(Reported, and_(Reported.device == Desired.device, Reported.model == Desired.model))
        .where(
            func.coalesce(AssignmentRow.why["action"].as_string(), "run") == "run",
            func.coalesce(Reported.active, "") != func.coalesce(Build.digest, ""),
        )
    )
    troubled = session.scalar(
        select(func.count(Reported.device.distinct())).where(Reported.state.in_(sorted(str(state) for state in BAD)))
    )
    return Devices(row[0], row[1] or 0, row[2] or 0, off_target or 0, troubled or 0)


def _models(session: Session, now_ms: int) -> tuple[list[ServedModel], Health, int]:
    rows = session.execute(
        select(
            Version.model,
            Version.name,
            Version.id,
            Build.target,
            Build.digest,
            func.count(),
            func.sum(case((Device.simulated, 1), else_=0)),
        )
        .select_from(Reported)
        .join(Build, Build.digest == Reported.active)
        .join(Version, Version.id == Build.version_id)
        .join(Device, and_(Device.id == Reported.device, Device.revoked_ms.is_(None)))
        .group_by(Version.model, Version.name, Version.id, Build.target, Build.digest)
        .order_by(Version.model, Version.id.desc(), Build.target)
        .limit(MAX_ROWS)
    ).all()
    served: dict[str, dict[str, ServedVersion]] = {}
    digests: dict[str, tuple[str, str]] = {}
    for model, version, _, target, digest, count, simulated in rows:
        one = served.setdefault(model, {}).setdefault(version, ServedVersion(version))
        one.devices += count
        one.simulated += simulated or 0
        one.targets[target] += count
        digests[digest] = (model, version)
    spell = latency.lately(session, list(digests), now_ms, RECENT_MS)
    grouped: defaultdict[tuple[str, str], list[latency.Window]] = defaultdict(list)
    counted: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    for window in spell.windows:
        grouped[digests[window.build]].append(window)
    for build, tally in spell.tallies.items():
        counted[digests[build]] += tally
    for (model, version), tally in counted.items():
        served[model][version].health = latency.health(grouped[model, version], tally)
    models = [
        ServedModel(model, list(versions.values()), sum(one.devices for one in versions.values()))
        for model, versions in served.items()
    ]
    health = latency.health(spell.windows, sum(counted.values(), Tally()))
    return models, health, now_ms - spell.since_ms


def _campaigns(session: Session, now_ms: int) -> list[CampaignView]:
    names = session.scalars(
        select(Campaign.name)
        .where(Campaign.state.in_(sorted(state.value for state in ACTIVE)))
        .order_by(Campaign.id.desc())
        .limit(MAX_SHOWN_CAMPAIGNS)
    ).all()
    return [campaign_views.show(session, name, now_ms) for name in names]


_EVENT_TONES = {
    "gate_breached": "bad",
    "halted": "bad",
    "failed": "bad",
    "rolling_back": "warn",
    "rolled_back": "warn",
    "paused": "warn",
    "stage_passed": "ok",
    "done": "ok",
}


def event_tone(kind: str) -> str:
    return _EVENT_TONES.get(kind, "calm")


def _happenings(session: Session) -> list[Happening]:
    events = session.execute(
        select(CampaignEvent, Campaign.name)
        .join(Campaign, Campaign.id == CampaignEvent.campaign_id)
        .where(CampaignEvent.kind.not_in(_ROUTINE))
        .order_by(CampaignEvent.id.desc())
        .limit(EVENTS)
    ).all()
    found = [
        Happening(event.at_ms, event_tone(event.kind), name, event.message, f"/campaigns/{name}")
        for event, name in events
    ]
    reports = session.scalars(
        select(ReportRow)
        .where(ReportRow.state.in_(sorted(str(state) for state in BAD)))
        .order_by(ReportRow.at_ms.desc())
        .limit(EVENTS)
    )
    found += [
        Happening(
            report.received_ms,
            "bad" if report.state != "rolled_back" else "warn",
            report.device,
            f"{report.model} {report.version} {report.state.replace('_', ' ')}: "
            f"{report.detail or report.reason.replace('_', ' ')}",
            f"/devices/{report.device}",
        )
        for report in reports
    ]
    enrolled = session.execute(
        select(Device.id, Device.enrolled_ms, Device.simulated).order_by(Device.enrolled_ms.desc()).limit(EVENTS)
    )
    found += [
        Happening(at_ms, "calm", device, f"enrolled{' (simulated)' if simulated else ''}", f"/devices/{device}")
        for device, at_ms, simulated in enrolled
    ]
    return sorted(found, key=lambda one: one.at_ms, reverse=True)[:EVENTS]
