"""Is the fleet well? What the first page shows, in a fixed number of bounded queries."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram, merge
from covey_contract.lifecycle import BAD, State
from covey_server.campaigns import views as campaign_views
from covey_server.campaigns.views import CampaignSummary, CampaignView
from covey_server.console import latency, states, words
from covey_server.console.i18n import gettext as _
from covey_server.console.i18n import ngettext
from covey_server.console.latency import Health, Tally
from covey_server.console.sentences import sentence
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
from covey_server.fleet.standing import off_target

# The longest of these is taken that a fleet's size allows.
SPANS_MS = (5 * 60_000, 2 * 60_000, 60_000, 30_000)
WINDOW_MS = 10_000
MAX_COUNTED = 30_000
QUANTILE_WINDOWS = 400
MAX_SHOWN_CAMPAIGNS = 6
ENDED_CAMPAIGNS = 3
EVENTS = 10
MAX_KINDS = 12
BAD_ERROR_RATE = 0.01
# Every campaign has them, and its own page shows them.
_ROUTINE = ("assigned", "stage_started", "restoring", "rolling_back")
MAX_ROWS = 400


@dataclass(frozen=True)
class Devices:
    total: int
    online: int
    simulated: int
    off_target: int  # hold another build than they should, and are on the way
    troubled: int  # their newest deployment ended badly
    drifted: int  # had reached what they should run, and run something else now


@dataclass(frozen=True)
class Kind:
    """The devices of one firmware profile; None: no profile matches them."""

    profile: str | None
    devices: int
    online: int


@dataclass(frozen=True)
class Trouble:
    """One thing that is not well. `tone` as in `states.Look`; `link` is the page to look at."""

    tone: str
    text: str
    link: str


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
    """`tone` as in `states.Look`; `link` is a page of the console."""

    at_ms: int
    tone: str
    who: str
    text: str
    link: str


@dataclass(frozen=True)
class FleetView:
    """`campaigns` are those under way, `ended` the newest others. Quantiles reach back `span_ms`, counts `counted_ms`."""

    devices: Devices
    models: list[ServedModel]
    health: Health
    span_ms: int
    counted_ms: int
    campaigns: list[CampaignView]
    ended: list[CampaignSummary]
    happenings: list[Happening]
    kinds: list[Kind]

    @property
    def sampled(self) -> bool:
        return self.span_ms < self.counted_ms

    @property
    def troubles(self) -> list[Trouble]:
        """What is not well, the worst first."""
        found = []
        devices, health = self.devices, self.health
        if health.error_rate is not None and health.error_rate > BAD_ERROR_RATE:
            text = _("%(share)s of all requests fail") % {"share": words.percent(health.error_rate)}
            found.append(Trouble("bad", text, "#serving"))
        if devices.troubled:
            text = ngettext(
                "the last deployment failed on %(count)s device",
                "the last deployment failed on %(count)s devices",
                devices.troubled,
            )
            text %= {"count": words.number(devices.troubled)}
            found.append(Trouble("bad", text, "/devices?standing=failed"))
        found += [
            Trouble(
                "bad" if one.state == "halted" else "warn",
                _("%(campaign)s is %(state)s") % {"campaign": one.name, "state": states.look(one.state).text},
                f"/campaigns/{one.name}",
            )
            for one in self.campaigns
            if one.state != "running"
        ]
        if devices.drifted:
            text = ngettext(
                "%(count)s device runs something else than it had reached",
                "%(count)s devices run something else than they had reached",
                devices.drifted,
            )
            found.append(Trouble("warn", text % {"count": words.number(devices.drifted)}, "/devices?standing=drifted"))
        if devices.online < devices.total:
            away = devices.total - devices.online
            text = ngettext("%(count)s device offline", "%(count)s devices offline", away)
            found.append(Trouble("warn", text % {"count": words.number(away)}, "/devices?online=no"))
        return found


def fleet(session: Session, now_ms: int) -> FleetView:
    kinds, simulated = _kinds(session)
    devices = _standing(session, kinds, simulated)
    counted_ms = _span_ms(devices.online)
    models, health, span_ms = _models(session, devices, now_ms, counted_ms)
    campaigns = _campaigns(session, now_ms)
    running = {one.name for one in campaigns}
    newest, _ = campaign_views.list_campaigns(session, ENDED_CAMPAIGNS + MAX_SHOWN_CAMPAIGNS)
    ended = [one for one in newest if one.name not in running and one.started_ms is not None][:ENDED_CAMPAIGNS]
    return FleetView(
        devices, models, health, span_ms, counted_ms, campaigns, ended, _happenings(session), kinds[:MAX_KINDS]
    )


def _standing(session: Session, kinds: list[Kind], simulated: int) -> Devices:
    # Nothing is off target that is to be removed. Those that were cut off are few, and an index holds them.
    revoked = select(Device.id).where(Device.revoked_ms.is_not(None))
    off = off_target().add_columns(AssignmentRow.state).where(Desired.device.not_in(revoked)).subquery()
    off_device, off_state = off.c.device, off.c.state
    drifted = case((off_state == State.ACTIVE.value, off_device))
    behind = case((off_state != State.ACTIVE.value, off_device))
    moving = session.execute(select(func.count(behind.distinct()), func.count(drifted.distinct()))).one()
    troubled = session.scalar(
        select(func.count(Reported.device.distinct())).where(
            Reported.state.in_(sorted(str(state) for state in BAD)), Reported.device.not_in(revoked)
        )
    )
    total, online = sum(one.devices for one in kinds), sum(one.online for one in kinds)
    return Devices(total, online, simulated, moving[0], troubled or 0, moving[1])


def _kinds(session: Session) -> tuple[list[Kind], int]:
    """Devices by profile, the most common first; and how many of all are simulated. From an index alone."""
    rows = session.execute(
        select(Device.profile, Device.online, Device.simulated, func.count())
        .where(Device.revoked_ms.is_(None))
        .group_by(Device.profile, Device.online, Device.simulated)
    )
    found: defaultdict[str | None, list[int]] = defaultdict(lambda: [0, 0])
    simulated = 0
    for profile, online, made_up, count in rows:
        found[profile][0] += count
        found[profile][1] += count if online else 0
        simulated += count if made_up else 0
    kinds = [Kind(profile, count, online) for profile, (count, online) in found.items()]
    return sorted(kinds, key=lambda one: (-one.devices, one.profile or "")), simulated


def _span_ms(devices: int) -> int:
    """How far back counts reach: so far that no more than `MAX_COUNTED` windows are counted, of devices that report each ten
    seconds."""
    for span_ms in SPANS_MS:
        if devices * span_ms // WINDOW_MS <= MAX_COUNTED:
            return span_ms
    return SPANS_MS[-1]


def _models(session: Session, devices: Devices, now_ms: int, counted_ms: int) -> tuple[list[ServedModel], Health, int]:
    made_up = _simulated_by_build(session, devices)
    holding = _holding(session)
    rows = session.execute(
        select(Version.model, Version.name, Build.target, Build.digest)
        .join(Build, Build.version_id == Version.id)
        .where(Build.digest.in_(sorted(holding)))
        .order_by(Version.model, Version.id.desc(), Build.target)
    ).all()
    served: dict[str, dict[str, ServedVersion]] = {}
    digests: dict[str, tuple[str, str]] = {}
    for model, version, target, held in rows:
        digest = str(held)
        count = holding[digest]
        one = served.setdefault(model, {}).setdefault(version, ServedVersion(version))
        one.devices += count
        one.simulated += made_up.get(digest, 0) if made_up is not None else count
        one.targets[target] += count
        digests[digest] = (model, version)
    spell = latency.lately(session, list(digests), now_ms, counted_ms, QUANTILE_WINDOWS)
    grouped: defaultdict[tuple[str, str], list[Histogram]] = defaultdict(list)
    counted: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    for window in spell.windows:
        grouped[digests[window.build]].append(window.latency)
    for build, tally in spell.tallies.items():
        counted[digests[build]] += tally
    merged = {key: merge(grouped[key]) for key in counted}
    for (model, version), tally in counted.items():
        served[model][version].health = latency.health_of(merged[model, version], tally)
    models = [
        ServedModel(model, list(versions.values()), sum(one.devices for one in versions.values()))
        for model, versions in served.items()
    ]
    health = latency.health_of(merge(list(merged.values())), sum(counted.values(), Tally()))
    return models, health, now_ms - spell.since_ms


def _holding(session: Session) -> dict[str, int]:
    """How many devices run each build, of the builds that most run. From an index alone, less the few that were cut off."""
    per_build = select(Reported.active, func.count()).where(Reported.active.is_not(None)).group_by(Reported.active)
    counts = {
        str(digest): count for digest, count in session.execute(per_build.order_by(func.count().desc()).limit(MAX_ROWS))
    }
    revoked = select(Device.id).where(Device.revoked_ms.is_not(None))
    for digest, count in session.execute(per_build.where(Reported.device.in_(revoked))):
        if str(digest) in counts:
            counts[str(digest)] -= count
    return {digest: count for digest, count in counts.items() if count > 0}


def _simulated_by_build(session: Session, devices: Devices) -> dict[str, int] | None:
    """How many simulated devices run each build; None: all devices are simulated. Of a fleet without any, nothing is asked."""
    if devices.simulated == devices.total:
        return None
    if not devices.simulated:
        return {}
    rows = session.execute(
        select(Reported.active, func.count())
        .join(Device, and_(Device.id == Reported.device, Device.revoked_ms.is_(None)))
        .where(Device.simulated.is_(True), Reported.active.is_not(None))
        .group_by(Reported.active)
    )
    return {str(digest): count for digest, count in rows}


def _campaigns(session: Session, now_ms: int) -> list[CampaignView]:
    names = session.scalars(
        select(Campaign.name)
        .where(Campaign.state.in_(sorted(state.value for state in ACTIVE)))
        .order_by(Campaign.id.desc())
        .limit(MAX_SHOWN_CAMPAIGNS)
    ).all()
    return [campaign_views.show(session, name, now_ms) for name in names]


def _happenings(session: Session) -> list[Happening]:
    events = session.execute(
        select(CampaignEvent, Campaign.name)
        .join(Campaign, Campaign.id == CampaignEvent.campaign_id)
        .where(CampaignEvent.kind.not_in(_ROUTINE))
        .order_by(CampaignEvent.id.desc())
        .limit(EVENTS)
    ).all()
    found = [
        Happening(event.at_ms, states.event_tone(event.kind), name, sentence(event.message), f"/campaigns/{name}")
        for event, name in events
    ]
    # State by state, so that an index gives the newest of each.
    reports = [
        report
        for state in sorted(BAD)
        for report in session.scalars(
            select(ReportRow).where(ReportRow.state == state.value).order_by(ReportRow.at_ms.desc()).limit(EVENTS)
        )
    ]
    found += [
        Happening(
            report.received_ms,
            "bad" if report.state != "rolled_back" else "warn",
            report.device,
            f"{report.model} {report.version} {states.look(report.state).text}: "
            f"{sentence(report.detail) or states.name(report.reason)}",
            f"/devices/{report.device}",
        )
        for report in reports
    ]
    enrolled = session.execute(
        select(Device.id, Device.enrolled_ms, Device.simulated).order_by(Device.enrolled_ms.desc()).limit(EVENTS)
    )
    found += [
        Happening(
            at_ms, "calm", device, _("enrolled (simulated)") if simulated else _("enrolled"), f"/devices/{device}"
        )
        for device, at_ms, simulated in enrolled
    ]
    return sorted(found, key=lambda one: one.at_ms, reverse=True)[:EVENTS]
