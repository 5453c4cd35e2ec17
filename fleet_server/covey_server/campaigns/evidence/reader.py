"""The evidence for a stage's gates, read as it comes.

Each canary has a swap moment of its own, by its own clock: windows count as before if they ended before it, at most `BEFORE_MS`
earlier, and as after if they began once the burn-in was over. Each control device is paired by lot with a canary of its kind, and
its windows are divided at the same moment, so that both groups are looked at over the same spans of time.

What was read of a device is kept in memory, so that a look reads only what has come since the last one, and at most `ROWS_A_LOOK`
rows. That is an optimisation only: a reader that starts anew reads the same from the database, bit by bit, and says how many devices
it still lacks; nothing passes meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row, func, select, tuple_
from sqlalchemy.orm import Session

from covey_server.campaigns.evidence.devices import (
    Canary,
    Control,
    canaries,
    candidates,
    draw_controls,
    site_counts,
    still_controls,
)
from covey_server.campaigns.evidence.telemetry import BEFORE_MS, Needs, Tally, clock_offset_ms, rows_query
from covey_server.core.draw import lot_of
from covey_server.core.engine import StageCounts
from covey_server.core.gates import DeviceEvidence, SiteCount, StageEvidence
from covey_server.core.spec.gates import Gates, SilenceGate
from covey_server.db.tables import Campaign, TelemetryRow
from covey_server.fleet.sql import chunks

ROWS_A_LOOK = 10_000
# Rows are stored some time after they arrived; those of the last seconds are looked for again.
OVERLAP_MS = 5_000
# How much earlier than its stage a device's own past may have reached the server.
SLACK_MS = 600_000
# With many devices something new comes all the time; then it is taken up this often.
LOOK_MS = 5_000
MANY = 200
# A stage that lacks control devices looks for others this often.
REDRAW_MS = 60_000
MAX_STAGES_KEPT = 32
LOAD_DEVICES = 50


@dataclass
class _Unit:
    """What is known of one device: `role` is what its tally rests on; a new one starts anew."""

    role: tuple[Any, ...]
    tally: Tally | None = None  # None: its telemetry has not been read
    evidence: DeviceEvidence | None = None


@dataclass
class _Stage:
    """What is kept of one stage of one campaign between two looks."""

    key: tuple[Any, ...]
    needs: Needs
    devices: list[str] = field(default_factory=list)
    devices_of: int = -1  # the stage's size when they were chosen
    moments: dict[str, tuple[int, int]] = field(default_factory=dict)
    drawn: list[Control] = field(default_factory=list)
    drawn_for: frozenset[str] = frozenset()
    drawn_ms: int | None = None
    sites: tuple[SiteCount, ...] = ()
    sites_of: int = -1
    units: dict[str, _Unit] = field(default_factory=dict)
    cursor_ms: int = 0  # the newest arrival that was read
    resume: tuple[int, str, int, int] | None = None  # where a look had to stop: after this row
    recent: dict[tuple[str, int, int], int] = field(default_factory=dict)
    looked_ms: int | None = None
    swapped: tuple[DeviceEvidence, ...] = ()
    controls: tuple[DeviceEvidence, ...] = ()
    pool: int = 0
    loading: int = 0


class EvidenceReader:
    """Reads for one thread. `rows_a_look` bounds what one look reads."""

    def __init__(self, rows_a_look: int = ROWS_A_LOOK) -> None:
        self._rows_a_look = rows_a_look
        self._stages: dict[int, _Stage] = {}

    def look(
        self, session: Session, campaign: Campaign, gates: Gates, settle_ms: int, counts: StageCounts, now_ms: int
    ) -> StageEvidence:
        """What the gates of the campaign's present stage look at. The same objects as at the last look where nothing has come.
        `settle_ms`: after a swap, before measurements count, unless the gates ask for a burn-in of their own."""
        if gates.evidence.burn_in is not None:
            settle_ms = gates.evidence.burn_in.ms
        needs = Needs.of(gates)
        known = counts.evidence()
        if not needs.anything:
            return known
        stage = self._stage(campaign, gates, settle_ms, needs)
        if self._is_due(stage, now_ms):
            stage.looked_ms = now_ms
            self._read(session, campaign, stage, gates, settle_ms, counts, now_ms)
        return replace(
            known,
            swapped=stage.swapped,
            controls=stage.controls,
            control_pool=stage.pool,
            sites=stage.sites,
            loading=stage.loading,
        )

    def _stage(self, campaign: Campaign, gates: Gates, settle_ms: int, needs: Needs) -> _Stage:
        key = (campaign.stage, campaign.stage_started_ms, gates, settle_ms)
        kept = self._stages.pop(campaign.id, None)
        if kept is None or kept.key != key:
            kept = _Stage(key, needs)
        self._stages[campaign.id] = kept
        while len(self._stages) > MAX_STAGES_KEPT:
            del self._stages[next(iter(self._stages))]
        return kept

    def _is_due(self, stage: _Stage, now_ms: int) -> bool:
        if stage.looked_ms is None or len(stage.units) <= MANY or stage.loading:
            return True
        return not 0 <= now_ms - stage.looked_ms < LOOK_MS

    def _read(
        self,
        session: Session,
        campaign: Campaign,
        stage: _Stage,
        gates: Gates,
        settle_ms: int,
        counts: StageCounts,
        now_ms: int,
    ) -> None:
        silence = gates.silence or SilenceGate()
        silent_ms = now_ms - silence.after.ms
        if stage.devices_of != counts.total:
            stage.devices, stage.devices_of = candidates(session, campaign, counts.total), counts.total
        judged = canaries(session, campaign, stage.devices, stage.moments, silent_ms)
        stage.moments.update({each.assignment: (each.swap_ms, each.swap_received_ms) for each in judged})
        control = self._controls(session, campaign, stage, gates, judged, now_ms, silent_ms)
        if stage.sites_of != len(judged):
            stage.sites, stage.sites_of = site_counts(session, campaign, judged), len(judged)
        self._match(stage, judged, control)
        since_ms = (campaign.stage_started_ms or now_ms) - BEFORE_MS - SLACK_MS
        changed = self._read_new(session, campaign, stage, since_ms)
        changed |= self._load(session, campaign, stage, settle_ms, since_ms)
        self._put_together(stage, judged, control, changed)

    # --- who ------------------------------------------------------------------------------------------------------

    def _controls(
        self,
        session: Session,
        campaign: Campaign,
        stage: _Stage,
        gates: Gates,
        judged: Sequence[Canary],
        now_ms: int,
        silent_ms: int,
    ) -> dict[str, tuple[Control, Any]]:
        """The control devices and whether they were lost, by name."""
        kinds = frozenset(each.kind for each in judged)
        few = len(stage.drawn) < gates.evidence.min_controls
        old = stage.drawn_ms is None or now_ms - stage.drawn_ms >= REDRAW_MS
        if kinds and (kinds != stage.drawn_for or (few and old)):
            seed = campaign_seed(campaign)
            # Those that were there when the stage began: a control device that has been lost since counts, as a canary does.
            seen_ms = (campaign.stage_started_ms or now_ms) - (now_ms - silent_ms)
            stage.drawn = draw_controls(session, campaign, kinds, seed, gates.evidence.max_controls, seen_ms)
            stage.drawn_for, stage.drawn_ms = kinds, now_ms
        going_on = still_controls(session, campaign, stage.drawn, silent_ms)
        stage.drawn = [each for each in stage.drawn if each.device in going_on]
        stage.pool = len(stage.drawn)
        return {each.device: (each, going_on[each.device]) for each in stage.drawn}

    def _match(self, stage: _Stage, judged: Sequence[Canary], control: dict[str, tuple[Control, Any]]) -> None:
        """Which device's telemetry is divided when. A control device shares the moment of the canary of its kind at its own
        place among them; while that one has not swapped, it waits."""
        units: dict[str, _Unit] = {}
        for each in judged:
            role = ("canary", each.assignment, each.swap_ms, each.digest_before, each.digest)
            units[each.device] = _kept(stage.units.get(each.device), role)
        swaps: dict[str, list[int]] = defaultdict(list)
        for each in sorted(judged, key=lambda canary: lot_of(canary.device)):
            swaps[each.kind].append(each.swap_received_ms)
        for device, (found, _) in control.items():
            moments = swaps[found.kind]
            if not moments:
                continue
            old = stage.units.get(device)
            # Whoever has a moment keeps it while others swap.
            if old is not None and old.role[0] == "control" and old.role[2] == found.digest:
                units[device] = old
                continue
            moment = moments[lot_of(device) * 7 % len(moments)]
            units[device] = _Unit(("control", moment, found.digest))
        stage.units = units

    # --- reading --------------------------------------------------------------------------------------------------

    def _read_new(self, session: Session, campaign: Campaign, stage: _Stage, since_ms: int) -> set[str]:
        """What has come since the last look for the devices that were read before."""
        loaded = [device for device, unit in stage.units.items() if unit.tally is not None]
        if not loaded:
            return set()
        row = TelemetryRow
        order = (row.received_ms, row.device, row.seq, row.part)
        query = rows_query(stage.needs).where(row.received_ms >= since_ms, row.model == campaign.model)
        if stage.resume is not None:
            query = query.where(tuple_(*order) > tuple_(*stage.resume))
        else:
            query = query.where(row.received_ms >= stage.cursor_ms - OVERLAP_MS)
        if len(loaded) <= MANY:
            query = query.where(row.device.in_(loaded))
        rows = session.execute(query.order_by(*order).limit(self._rows_a_look)).all()
        last = rows[-1] if len(rows) == self._rows_a_look else None
        stage.resume = None if last is None else (last.received_ms, last.device, last.seq, last.part)
        fresh: dict[str, list[Row[Any]]] = defaultdict(list)
        for found in rows:
            key = (found.device, found.seq, found.part)
            unit = stage.units.get(found.device)
            if unit is not None and unit.tally is not None and key not in stage.recent:
                stage.recent[key] = found.received_ms
                fresh[found.device].append(found)
        if rows:
            stage.cursor_ms = max(stage.cursor_ms, rows[-1].received_ms)
        _forget(stage)
        return {
            device
            for device, theirs in fresh.items()
            if (tally := stage.units[device].tally) is not None and tally.add(theirs, stage.needs)
        }

    def _load(self, session: Session, campaign: Campaign, stage: _Stage, settle_ms: int, since_ms: int) -> set[str]:
        """All that there is of devices that have not been read yet, canaries first, as far as one look goes."""
        waiting = [device for device, unit in stage.units.items() if unit.tally is None]
        newest = session.scalar(select(func.max(TelemetryRow.received_ms)))
        if not stage.cursor_ms and newest is not None:
            stage.cursor_ms = newest
        left, loaded = self._rows_a_look, set()
        for part in chunks(waiting, LOAD_DEVICES):
            if left <= 0:
                break
            rows: dict[str, list[Row[Any]]] = {device: [] for device in part}
            query = rows_query(stage.needs).where(
                TelemetryRow.device.in_(part),
                TelemetryRow.model == campaign.model,
                TelemetryRow.received_ms >= since_ms,
            )
            for row in session.execute(query):
                rows[row.device].append(row)
                left -= 1
                if row.received_ms >= stage.cursor_ms - 2 * OVERLAP_MS:
                    stage.recent[row.device, row.seq, row.part] = row.received_ms
            for device, theirs in rows.items():
                unit = stage.units[device]
                unit.tally = _tally(unit.role, theirs, settle_ms)
                unit.tally.add(theirs, stage.needs)
                loaded.add(device)
        stage.loading = len(waiting) - len(loaded)
        return loaded

    def _put_together(
        self, stage: _Stage, judged: Sequence[Canary], control: dict[str, tuple[Control, Any]], changed: set[str]
    ) -> None:
        for device in changed:
            stage.units[device].evidence = None
        swapped = [
            _evidence(stage.units[each.device], each, each.digest_before is not None, each.lost) for each in judged
        ]
        controls = [
            _evidence(stage.units[device], found, True, lost)
            for device, (found, lost) in control.items()
            if device in stage.units
        ]
        stage.swapped = _same(stage.swapped, [each for each in swapped if each is not None])
        # A control device that answered nothing before can tell nothing.
        stage.controls = _same(stage.controls, [each for each in controls if each is not None and each.before])


def campaign_seed(campaign: Campaign) -> int:
    """The seed of the campaign's draw, which is recorded in its file; the control is drawn with it too."""
    seed = campaign.spec.get("seed")
    return seed if isinstance(seed, int) else campaign.id


def _kept(old: _Unit | None, role: tuple[Any, ...]) -> _Unit:
    return old if old is not None and old.role == role else _Unit(role)


def _tally(role: tuple[Any, ...], rows: Sequence[Row[Any]], settle_ms: int) -> Tally:
    if role[0] == "canary":
        return Tally(role[2], settle_ms, role[3], role[4])
    _, moment, digest = role
    return Tally(moment - (clock_offset_ms(rows) if rows else 0), settle_ms, digest, digest)


def _evidence(unit: _Unit, of: Canary | Control, had_build: bool, lost: Any) -> DeviceEvidence | None:
    """As at the last look where nothing has changed, so that what was computed of it stays."""
    if unit.tally is None:
        return None
    if unit.evidence is None:
        unit.evidence = DeviceEvidence(
            of.device, had_build, unit.tally.before, unit.tally.after, of.kind, of.site, lost
        )
    elif unit.evidence.lost != lost or unit.evidence.kind != of.kind or unit.evidence.site != of.site:
        unit.evidence = replace(unit.evidence, lost=lost, kind=of.kind, site=of.site)
    return unit.evidence


def _same(old: tuple[DeviceEvidence, ...], new: list[DeviceEvidence]) -> tuple[DeviceEvidence, ...]:
    unchanged = len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old if unchanged else tuple(new)


def _forget(stage: _Stage) -> None:
    oldest = stage.cursor_ms - 2 * OVERLAP_MS
    if len(stage.recent) > 1000:
        stage.recent = {key: received for key, received in stage.recent.items() if received >= oldest}
