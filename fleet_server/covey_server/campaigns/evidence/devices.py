"""Who is judged, and who is the control: the devices of the present stage, and others that run the model, drawn at random.

Both draws follow the devices' lots, which are fixed for their lives, so that they are the same after a restart, and neither can
know how a device fares. Each statement looks at a bounded number of devices, whatever the campaign is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_server.core.draw import MODULUS, Permutation
from covey_server.core.engine import DeviceState
from covey_server.core.gates.evidence import Lost, SiteCount
from covey_server.db.tables import Build, Campaign, CampaignDevice, Device, Reported, ReportRow
from covey_server.fleet.sql import chunks

# Of a larger stage so many devices are judged; and so many control devices are compared with at most.
MAX_JUDGED = 2000
MAX_CONTROLS = 2000
# Looking for control devices ends after so many devices.
MAX_SCANNED = 40_000
MAX_SITES = 300

_JUDGED = [DeviceState.ASSIGNED.value, DeviceState.ACTIVE.value, DeviceState.FAILED.value]
_CRASHES = frozenset({Reason.RUNNER_CRASHED.value, Reason.RUNNER_HUNG.value, Reason.PROBATION_INTERRUPTED.value})


@dataclass(frozen=True)
class Canary:
    """A device of the stage that has swapped: when by its own clock and by the server's, from which build, to which."""

    device: str
    kind: str
    site: str
    assignment: str
    swap_ms: int
    swap_received_ms: int
    digest: str
    digest_before: str | None
    lost: Lost | None


@dataclass(frozen=True)
class Control:
    """A device that goes on running the build it had."""

    device: str
    kind: str
    site: str
    digest: str


# --- the stage's devices ------------------------------------------------------------------------------------------


def candidates(session: Session, campaign: Campaign, total: int) -> list[str]:
    """At most `MAX_JUDGED` devices of the present stage, of `total`: those with the lowest lots. Of a large stage only so much of
    the lots is looked at as should hold them."""
    part, width = CampaignDevice, MODULUS
    if total > 5 * MAX_JUDGED:
        width = MODULUS * 2 * MAX_JUDGED // total
    while True:
        found = list(
            session.scalars(
                select(part.device)
                .join(Device, Device.id == part.device)
                .where(
                    Device.lot < width,
                    part.campaign_id == campaign.id,
                    part.stage == campaign.stage,
                    part.build_id.is_not(None),
                )
                .order_by(Device.lot, part.device)
                .limit(MAX_JUDGED)
            )
        )
        if len(found) == MAX_JUDGED or width >= MODULUS:
            return found
        width = min(width * 4, MODULUS)


def canaries(
    session: Session,
    campaign: Campaign,
    devices: Sequence[str],
    known: Mapping[str, tuple[int, int]],
    silent_before_ms: int,
) -> list[Canary]:
    """Those of `devices` that have swapped by an order of this campaign. `known`: the moments of swaps found earlier, by assignment;
    they do not change."""
    rows = [row for part in chunks(devices) for row in session.execute(_parts(campaign, part))]
    moments = {
        **known,
        **_moments(session, [(row.device, row.assignment) for row in rows if row.assignment not in known]),
    }
    found = []
    for row in rows:
        if row.assignment not in moments or row.digest is None:
            continue
        swap_ms, received_ms = moments[row.assignment]
        found.append(
            Canary(
                row.device,
                row.profile or "",
                row.site or "",
                row.assignment,
                swap_ms,
                received_ms,
                row.digest,
                row.digest_before,
                _lost(row, silent_before_ms),
            )
        )
    return sorted(found, key=lambda canary: canary.device)


def _parts(campaign: Campaign, devices: Sequence[str]) -> Select[*tuple[Any, ...]]:
    part, new, previous = CampaignDevice, aliased(Build), aliased(Build)
    return (
        select(
            part.device,
            part.assignment,
            part.state,
            part.reason,
            part.previous_build_id,
            Device.profile,
            Device.site,
            Device.last_seen_ms,
            new.digest,
            previous.digest.label("digest_before"),
            Reported.active,
        )
        .join(Device, Device.id == part.device)
        .join(new, new.id == part.build_id)
        .outerjoin(previous, previous.id == part.previous_build_id)
        .outerjoin(Reported, and_(Reported.device == part.device, Reported.model == campaign.model))
        .where(
            part.campaign_id == campaign.id,
            part.device.in_(devices),
            part.stage == campaign.stage,
            part.state.in_(_JUDGED),
            part.assignment.is_not(None),
        )
    )


def _moments(session: Session, orders: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """When the build of each order (its device and its id) began to serve: by the device's clock, and when the server heard of it."""
    found: dict[str, tuple[int, int]] = {}
    for part in chunks(orders):
        rows = session.execute(
            select(ReportRow.assignment, func.min(ReportRow.at_ms), func.min(ReportRow.received_ms))
            .where(
                ReportRow.device.in_([device for device, _ in part]),
                ReportRow.assignment.in_([order for _, order in part]),
                ReportRow.state.in_((State.PROBATION.value, State.ACTIVE.value)),
            )
            .group_by(ReportRow.assignment)
        )
        found.update({row[0]: (row[1], row[2]) for row in rows})
    return found


def _lost(row: Row[Any], silent_before_ms: int) -> Lost | None:
    """What a device that has swapped says no more tells, too."""
    if row.state == DeviceState.FAILED.value:
        return "crashed" if row.reason in _CRASHES else "went_back"
    if row.state == DeviceState.ACTIVE.value and row.active is not None and row.active != row.digest:
        return "went_back"
    return "silent" if (row.last_seen_ms or 0) < silent_before_ms else None


# --- the control --------------------------------------------------------------------------------------------------


def draw_controls(
    session: Session, campaign: Campaign, kinds: Iterable[str], seed: int, most: int, seen_after_ms: int
) -> list[Control]:
    """At most `most` devices of each of `kinds` that run the model in another version, are connected, and that this campaign has
    not reached: of its later stages, or outside it. By lot, from a place that the seed gives; a bounded number is looked at."""
    wanted = dict.fromkeys(sorted(set(kinds)), 0)
    drawn: list[Control] = []
    start = Permutation.of(seed).place(0)
    width, done, scanned = MODULUS // 1024, 0, 0
    while done < MODULUS and scanned < MAX_SCANNED:
        width = min(width, MODULUS - done)
        low = (start + done) % MODULUS
        rows = session.execute(_eligible(campaign, low, low + width, seen_after_ms).limit(MAX_SCANNED)).all()
        scanned += len(rows)
        for row in rows:
            kind = row.profile or ""
            if wanted.get(kind, most) < most:
                wanted[kind] += 1
                drawn.append(Control(row.id, kind, row.site or "", row.active))
        done += width
        if len(drawn) >= MAX_CONTROLS or all(count >= most for count in wanted.values()):
            break
        width *= 2
    return sorted(drawn[:MAX_CONTROLS], key=lambda control: control.device)


def _running(campaign: Campaign) -> Select[*tuple[Any, ...]]:
    """Devices that run the model in another version and have no part in the stages that have started."""
    mine = select(Build.digest).where(Build.version_id == campaign.version_id, Build.digest.is_not(None))
    return (
        select(Device.id, Device.profile, Device.site, Reported.active)
        .join(Reported, and_(Reported.device == Device.id, Reported.model == campaign.model))
        .outerjoin(
            CampaignDevice,
            and_(CampaignDevice.campaign_id == campaign.id, CampaignDevice.device == Device.id),
        )
        .where(
            Device.revoked_ms.is_(None),
            Reported.active.is_not(None),
            Reported.active.not_in(mine),
            or_(
                CampaignDevice.device.is_(None),
                CampaignDevice.stage < 0,
                and_(CampaignDevice.stage > campaign.stage, CampaignDevice.state == DeviceState.PLANNED.value),
            ),
        )
    )


def _eligible(campaign: Campaign, low: int, high: int, seen_after_ms: int) -> Select[*tuple[Any, ...]]:
    inside = and_(Device.lot >= low, Device.lot < high)
    if high > MODULUS:
        inside = or_(inside, Device.lot < high - MODULUS)
    return _running(campaign).where(inside, Device.last_seen_ms >= seen_after_ms).order_by(Device.lot, Device.id)


def still_controls(
    session: Session, campaign: Campaign, drawn: Sequence[Control], silent_before_ms: int
) -> dict[str, Lost | None]:
    """Those of `drawn` that go on running the build they were drawn with, and whether they have fallen silent."""
    digests = {control.device: control.digest for control in drawn}
    found: dict[str, Lost | None] = {}
    for part in chunks(sorted(digests)):
        for row in session.execute(_running(campaign).add_columns(Device.last_seen_ms).where(Device.id.in_(part))):
            if row.active == digests[row.id]:
                found[row.id] = "silent" if (row.last_seen_ms or 0) < silent_before_ms else None
    return found


def site_counts(session: Session, campaign: Campaign, judged: Sequence[Canary]) -> tuple[SiteCount, ...]:
    """How many devices that could be control devices stand at the sites of the canaries."""
    of_stage: dict[str, int] = {}
    for canary in judged:
        if canary.site:
            of_stage[canary.site] = of_stage.get(canary.site, 0) + 1
    sites = sorted(of_stage)[:MAX_SITES]
    if not sites:
        return ()
    running = _running(campaign).where(Device.site.in_(sites)).subquery()
    beside: dict[str, int] = {
        site: count for site, count in session.execute(select(running.c.site, func.count()).group_by(running.c.site))
    }
    return tuple(SiteCount(site, of_stage[site], beside.get(site, 0)) for site in sites)
