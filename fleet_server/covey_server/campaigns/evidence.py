"""The evidence for a stage's gates: each device's telemetry before and after its own swap.

The moment of a swap is the device's own (its first report of probation or active), and so are the windows' times; the server's
clock plays no part. A window counts as after if it began once the settling time was over, and as before if it ended before the
swap, at most `BEFORE_MS` earlier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Row, Select, Subquery, func, null, select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram
from covey_contract.lifecycle import State
from covey_server.core.engine import DeviceState, StageCounts
from covey_server.core.gates import DeviceEvidence, StageEvidence, Window
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import Build, Campaign, CampaignDevice, ReportRow, TelemetryRow

BEFORE_MS = 3_600_000
# Of a larger stage, the first so many that have swapped are judged: a bound on one tick's work.
MAX_JUDGED = 2000


def stage_evidence(session: Session, campaign: Campaign, spec: CampaignSpec, counts: StageCounts) -> StageEvidence:
    """What the gates of the campaign's present stage look at."""
    swapped: tuple[DeviceEvidence, ...] = ()
    if spec.gates.errors is not None or spec.gates.latency is not None:
        measure = spec.gates.latency.measure if spec.gates.latency is not None else None
        swapped = _swapped(session, campaign, spec.settle.ms, measure)
    return StageEvidence(counts.total, counts.failed, counts.active, counts.already, swapped)


def _swapped(session: Session, campaign: Campaign, settle_ms: int, measure: str | None) -> tuple[DeviceEvidence, ...]:
    swaps = _swaps(campaign)
    devices = session.execute(select(swaps.c.device, swaps.c.previous_build_id)).all()
    if not devices:
        return ()
    before = _windows(
        session.execute(
            _telemetry(swaps, measure, swaps.c.previous_digest).where(
                TelemetryRow.end_ms <= swaps.c.at_ms, TelemetryRow.end_ms > swaps.c.at_ms - BEFORE_MS
            )
        )
    )
    after = _windows(
        session.execute(
            _telemetry(swaps, measure, swaps.c.digest).where(
                TelemetryRow.end_ms > swaps.c.at_ms, TelemetryRow.start_ms >= swaps.c.at_ms + settle_ms
            )
        )
    )
    return tuple(
        DeviceEvidence(device, previous is not None, tuple(before[device]), tuple(after[device]))
        for device, previous in devices
    )


def _swaps(campaign: Campaign) -> Subquery:
    """For each device of the stage that has swapped: when, from which build, to which."""
    part, new, previous = CampaignDevice, Build.__table__.alias("new"), Build.__table__.alias("previous")
    return (
        select(
            part.device,
            part.previous_build_id,
            new.c.digest.label("digest"),
            previous.c.digest.label("previous_digest"),
            func.min(ReportRow.at_ms).label("at_ms"),
        )
        .select_from(part)
        .join(ReportRow, (ReportRow.device == part.device) & (ReportRow.assignment == part.assignment))
        .join(new, new.c.id == part.build_id)
        .outerjoin(previous, previous.c.id == part.previous_build_id)
        .where(
            part.campaign_id == campaign.id,
            part.stage == campaign.stage,
            part.state.in_((DeviceState.ASSIGNED.value, DeviceState.ACTIVE.value)),
            ReportRow.state.in_((State.PROBATION.value, State.ACTIVE.value)),
        )
        .group_by(part.device, part.previous_build_id, new.c.digest, previous.c.digest)
        .order_by(part.device)
        .limit(MAX_JUDGED)
        .subquery()
    )


def _telemetry(swaps: Subquery, measure: str | None, digest: Any) -> Select[Any]:
    rows = select(
        TelemetryRow.device,
        TelemetryRow.ok,
        TelemetryRow.failed,
        TelemetryRow.fallbacks,
        (TelemetryRow.histograms[measure] if measure else null()).label("latency"),
    )
    return rows.join(swaps, (swaps.c.device == TelemetryRow.device) & (digest == TelemetryRow.build)).order_by(
        TelemetryRow.device, TelemetryRow.end_ms
    )


def _windows(rows: Iterable[Row[Any]]) -> defaultdict[str, list[Window]]:
    windows: defaultdict[str, list[Window]] = defaultdict(list)
    for row in rows:
        latency = msgspec.convert(row.latency, Histogram) if row.latency else Histogram()
        # A fallback looked well to its caller, but this build failed it.
        windows[row.device].append(Window(max(row.ok - row.fallbacks, 0), row.failed + row.fallbacks, latency))
    return windows
