"""Evidence from a real database: who is judged and who is the control, that each row is read once, and that memory is only memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from covey_contract.histogram import merge
from covey_server.campaigns.evidence import EvidenceReader
from covey_server.campaigns.evidence.devices import candidates, draw_controls
from covey_server.campaigns.repository import count, progress_of
from covey_server.core.gates import DeviceEvidence, StageEvidence
from covey_server.db.engine import Database
from covey_server.db.tables import Build, Campaign, CampaignEvent, Device, TelemetryRow, Version
from covey_server.fleet.assignments import NewOrder, issue
from tests.integration.campaigns.conftest import Rig, opened

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

FILE = """\
name: judged
model: digits
version: "{version}"
seed: 7
stages:
  - {{name: canary, count: 10, soak: 4s}}
  - {{name: rest, percent: 100}}
settle: 1s
gates:
  install_failures: {{max_rate: 0.2}}
  errors: {{max_rate: 0.01, min_requests: 50}}
  latency: {{quantile: 0.9, min_requests: 100}}
on_breach: {on_breach}
"""
DEVICES, CANARIES = 32, 10


@pytest.fixture
def fleet(database: Database) -> Rig:
    """Devices on version 1.0 for some seconds, each with its own idea of the time."""
    return _fleet(Rig(database))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Rig]:
    """The same on SQLite alone."""
    with opened(f"sqlite:///{tmp_path / 'covey.db'}") as database:
        yield _fleet(Rig(database))


def _fleet(rig: Rig) -> Rig:
    for version in ("1.0", "1.1"):
        rig.add_version(version)
    for number in range(DEVICES):
        rig.add_device(f"press-{number:02}", skew_ms=(number % 5 - 2) * 600_000)
    _order(rig, "1.0", sorted(rig.devices))
    rig.run(6)
    assert set(rig.running().values()) == {"1.0"}
    return rig


def _order(rig: Rig, version: str, devices: list[str]) -> None:
    with rig.database.session() as session:
        build = session.scalars(select(Build).join(Version).where(Version.name == version)).one()
        orders = [NewOrder(device, "digits", build.version_id, build.id, "manual") for device in devices]
        issue(session, orders, rig.now_ms)


def look(rig: Rig, reader: EvidenceReader | None = None) -> StageEvidence:
    with rig.database.reading() as session:
        campaign, progress = _campaign(session)
        gates = progress.spec.gates_of(progress.stage)
        counts = count(session, campaign, progress.spec, rig.now_ms).stages[progress.stage]
        settle_ms = progress.spec.settle.ms
        return (reader or EvidenceReader()).look(session, campaign, gates, settle_ms, counts, rig.now_ms)


def _campaign(session: Session) -> tuple[Campaign, Any]:
    campaign = session.scalars(select(Campaign).where(Campaign.name == "judged")).one()
    return campaign, progress_of(session, campaign)


def told(devices: tuple[DeviceEvidence, ...]) -> dict[str, tuple[int, int, int, float]]:
    """What was read of each device: requests before and after, in how many windows, and the sum of their latencies."""
    return {
        device.device: (
            device.was.requests,
            device.is_now.requests,
            len(device.after),
            round(merge([window.latency for window in device.after]).sum, 6),
        )
        for device in devices
    }


def test_a_shift_that_no_threshold_sees_is_found_against_a_control_group(fleet: Rig) -> None:
    fleet.latency_ms = {"1.0": 4.0, "1.1": 4.6}
    fleet.make(FILE.format(version="1.1", on_breach="rollback"))
    view = fleet.run_until("judged", "rolled_back", seconds=60)
    assert view.verdict is not None
    assert (view.verdict["gate"], view.verdict["kind"], view.verdict["status"]) == ("latency", "e_process", "breached")
    assert view.verdict["ratio"] == pytest.approx(1.15, abs=0.05)
    assert view.verdict["controls"] == DEVICES - CANARIES
    assert view.verdict["evidence"]["e"] >= view.verdict["evidence"]["boundary"] == 200
    assert view.verdict["trace"][-1][1] == view.verdict["evidence"]["log10_e"]
    assert {device for _, device, version, _ in fleet.sent if version == "1.1"} == {
        device for device, part in fleet.parts("judged").items() if part.stage == 0
    }
    assert set(fleet.running().values()) == {"1.0"}


def test_nothing_changed_passes_and_the_last_stage_has_no_control_left(fleet: Rig) -> None:
    fleet.latency_ms = {"1.0": 4.0, "1.1": 4.0}
    fleet.make(FILE.format(version="1.1", on_breach="rollback"))
    fleet.run_until("judged", "done", seconds=90)
    with fleet.database.reading() as session:
        events = session.scalars(
            select(CampaignEvent).where(CampaignEvent.kind == "stage_passed").order_by(CampaignEvent.id)
        ).all()
    canary, rest = ({gate["gate"]: gate for gate in event.detail["gates"]} for event in events)
    assert (canary["latency"]["kind"], canary["errors"]["kind"]) == ("e_process", "e_process")
    assert canary["latency"]["interval"][0] <= 1 <= canary["latency"]["interval"][1]
    assert rest["latency"]["kind"] == "threshold"
    assert "control devices" in rest["latency"]["why"]


def test_what_is_kept_in_memory_is_what_a_new_reader_reads(fleet: Rig) -> None:
    """Row for row, while swaps, late rows and new windows come in; also for one that may read but little at a time."""
    fleet.latency_ms = {"1.0": 4.0, "1.1": 4.0}
    fleet.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    kept, slow = EvidenceReader(), EvidenceReader(rows_a_look=200)
    fleet.run(2)
    late = sorted(fleet.devices)[:6]
    for second in range(20):
        for device in late:
            fleet.devices[device].idle = second % 3 == 0
        fleet.run()
        look(fleet, kept)
        look(fleet, slow)
    fresh, remembered = look(fleet), look(fleet, kept)
    assert len(fresh.swapped) == CANARIES
    assert len(fresh.controls) == DEVICES - CANARIES
    assert told(remembered.swapped) == told(fresh.swapped)
    assert told(remembered.controls) == told(fresh.controls)
    for _ in range(20):
        bit_by_bit = look(fleet, slow)
    assert bit_by_bit.loading == 0
    assert told(bit_by_bit.swapped) == told(fresh.swapped)
    assert look(fleet, kept).swapped is remembered.swapped  # nothing new, nothing put together anew
    assert all(each.was.requests >= 200 for each in fresh.swapped)
    assert {each.kind for each in fresh.controls} == {each.kind for each in fresh.swapped}


def test_a_reader_that_has_not_read_all_says_so_and_nothing_passes(small: Rig) -> None:
    small.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    small.run(12)
    reader = EvidenceReader(rows_a_look=1)
    first = look(small, reader)
    assert first.loading == 0 or first.loading < DEVICES
    seen = [first.loading]
    for _ in range(5):
        seen.append(look(small, reader).loading)
    assert seen[-1] == 0
    assert seen == sorted(seen, reverse=True)


def test_control_devices_are_looked_at_over_the_same_span_by_their_own_clocks(small: Rig) -> None:
    small.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    small.run(20)
    found = look(small)
    after = [device.is_now.requests for device in found.swapped]
    beside = [device.is_now.requests for device in found.controls]
    assert max(after) - min(after) <= 100
    assert abs(sorted(beside)[11] - sorted(after)[5]) <= 150
    assert all(device.was.requests for device in found.controls)


def test_a_burn_in_takes_the_place_of_the_settling_time(small: Rig) -> None:
    longer = FILE.replace("gates:\n", "gates:\n  evidence: {{burn_in: 8s}}\n").replace("soak: 4s", "soak: 1h")
    small.make(longer.format(version="1.1", on_breach="pause"))
    small.run(7)
    assert {each.is_now.requests for each in look(small).swapped} == {0}
    small.run(6)
    assert {0} < {0, *(each.is_now.requests for each in look(small).swapped)}


def test_devices_that_fall_silent_or_go_back_are_told_as_lost(small: Rig) -> None:
    small.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    small.run(5)
    canary, control = look(small).swapped[0].device, look(small).controls[0].device
    for device in (canary, control):
        small.power(device, on=False)
    small.now_ms += 130_000
    small.run(2)
    found = look(small)
    assert {each.device for each in found.swapped if each.lost == "silent"} == {canary}
    assert {each.device for each in found.controls if each.lost == "silent"} == {control}


def test_a_control_device_that_takes_another_build_is_one_no_more(small: Rig) -> None:
    small.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    small.run(5)
    reader = EvidenceReader()
    before = look(small, reader)
    moved = before.controls[0].device
    small.add_version("0.9")
    _order(small, "0.9", [moved])
    small.latency_ms["0.9"] = 4.0
    small.run(2)
    after = look(small, reader)
    assert moved in {each.device for each in before.controls}
    assert moved not in {each.device for each in after.controls}


def test_the_control_is_drawn_by_lot_from_those_that_are_there(small: Rig) -> None:
    small.make(FILE.format(version="1.1", on_breach="pause"))
    small.run(2)
    off = sorted(set(small.devices) - {device for _, device, version, _ in small.sent if version == "1.1"})[0]
    with small.database.session() as session:
        device = session.get_one(Device, off)
        device.last_seen_ms = small.now_ms - 10_000_000
    with small.database.reading() as session:
        campaign, _ = _campaign(session)
        kinds = {device.profile or "" for device in session.scalars(select(Device))}
        canaries = set(candidates(session, campaign, CANARIES))
        assert set(candidates(session, campaign, 10**6)) == canaries  # looked for in a part of the lots first
        seen_ms = small.now_ms - 60_000
        drawn = draw_controls(session, campaign, kinds, 7, 10, seen_ms)
        assert draw_controls(session, campaign, kinds, 7, 10, seen_ms) == drawn
        other = draw_controls(session, campaign, kinds, 8, 10, seen_ms)
        everyone = draw_controls(session, campaign, kinds, 7, 1000, seen_ms)
    assert len(drawn) == 10
    assert drawn != other
    assert len(everyone) == DEVICES - CANARIES - 1
    assert not canaries & {each.device for each in everyone}
    assert off not in {each.device for each in everyone}


def test_only_the_last_hour_before_a_swap_is_a_devices_past(small: Rig) -> None:
    with small.database.session() as session:
        for row in session.scalars(select(TelemetryRow).where(TelemetryRow.seq < 7)):
            row.start_ms -= 2 * 3_600_000
            row.end_ms -= 2 * 3_600_000
    small.make(FILE.format(version="1.1", on_breach="pause").replace("soak: 4s", "soak: 1h"))
    small.run(5)
    assert {each.was.requests for each in look(small).swapped} <= {50, 100, 150, 200, 250}
