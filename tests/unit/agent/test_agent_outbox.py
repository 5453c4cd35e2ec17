"""The spool: numbers never come twice, nothing is lost before its acknowledgement, telemetry makes way for reports."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_agent.outbox import Outbox
from covey_contract.histogram import Recorder
from covey_contract.lifecycle import State
from covey_contract.messages import BuildWindow, Report, Telemetry
from covey_contract.topics import Up
from covey_contract.wire import decode

REPORT = Report(seq=0, time_ms=1, assignment="a", counter=1, model="m", version="1", build="a" * 64, state=State.ACTIVE)
TELEMETRY = Telemetry(seq=0, boot_id="b", start_ms=0, end_ms=1)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = opened(tmp_path)
    yield box
    box.close()


def opened(folder: Path, *, limit: int = 100, now_ms: int = 1000) -> Outbox:
    box = Outbox(folder / "outbox.db", clock=lambda: now_ms, limit=limit, resend_s=10.0)
    box.open()
    return box


def test_the_number_in_the_record_is_the_spools(outbox: Outbox) -> None:
    outbox.add(REPORT)
    (record,) = outbox.due(0.0)
    assert record.kind is Up.REPORT
    assert decode(Report, record.body).seq == record.seq
    assert outbox.last_seq() == record.seq
    outbox.acknowledged([record.seq])
    assert outbox.last_seq() == record.seq


def test_resent_after_a_timeout_and_on_a_new_connection_until_acknowledged(outbox: Outbox) -> None:
    outbox.add(TELEMETRY)
    outbox.add(REPORT)
    first = outbox.due(0.0)
    assert [record.kind for record in first] == [Up.REPORT, Up.TELEMETRY]
    assert outbox.due(5.0) == []
    assert outbox.due(11.0) == first
    outbox.connected()
    assert outbox.due(11.5) == first
    outbox.acknowledged([first[0].seq, 999])
    outbox.connected()
    assert outbox.due(12.0) == first[1:]
    assert outbox.waiting() == 1


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(3):
        box = opened(tmp_path)
        for _ in range(3):
            box.add(REPORT)
        records = box.due(0.0)
        box.acknowledged([record.seq for record in records])
        box.close()
        seen += [record.seq for record in records]
    # The spool is lost, time goes on.
    (tmp_path / "outbox.db").unlink()
    box = opened(tmp_path, now_ms=2000)
    box.add(REPORT)
    seen += [record.seq for record in box.due(0.0)]
    box.close()
    assert seen == sorted(set(seen))


def test_a_damaged_spool_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"this is no database" * 1000)
    box = opened(tmp_path)
    box.add(REPORT)
    assert len(box.due(0.0)) == 1
    box.close()
    assert (tmp_path / "outbox.db.damaged").exists()


def test_telemetry_makes_way_oldest_first_and_reports_stay(tmp_path: Path) -> None:
    box = opened(tmp_path, limit=5)
    for _ in range(8):
        box.add(REPORT)
    for end in range(9):
        box.add(Telemetry(seq=0, boot_id="b", start_ms=0, end_ms=end))
    records = box.due(0.0)
    assert sum(record.kind is Up.REPORT for record in records) == 8
    ends = [decode(Telemetry, record.body).end_ms for record in records if record.kind is Up.TELEMETRY]
    assert ends == [4, 5, 6, 7, 8]
    box.close()


def test_only_so_many_are_on_the_way_at_once(outbox: Outbox) -> None:
    for _ in range(20):
        outbox.add(REPORT)
    assert len(outbox.due(0.0, limit=8)) == 8
    assert outbox.due(1.0, limit=8) == []


def test_what_the_disk_does_not_take_is_held(tmp_path: Path, outbox: Outbox) -> None:
    blocker = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    blocker.execute("PRAGMA busy_timeout=0")
    outbox._open_database().execute("PRAGMA busy_timeout=0")
    blocker.execute("BEGIN IMMEDIATE")
    outbox.add(REPORT)
    assert outbox.waiting() == 1
    assert outbox.due(0.0) == []
    blocker.execute("ROLLBACK")
    blocker.close()
    outbox.flush()
    assert len(outbox.due(0.0)) == 1


def test_a_record_that_is_too_large_is_dropped_alone(outbox: Outbox) -> None:
    recorder = Recorder(scale=10)
    for value in range(1, 1000):
        recorder.record(value / 1000)
    window = BuildWindow(model="m", version="1", build="a" * 64, end_to_end=recorder.snapshot())
    outbox.add(Telemetry(seq=0, boot_id="b", start_ms=0, end_ms=1, windows=(window,) * 200))
    outbox.add(REPORT)
    assert [record.kind for record in outbox.due(0.0)] == [Up.REPORT]


def test_after_an_error_the_spool_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite falls back to reading only where it may not open for writing, and stays with it."""
    box = opened(tmp_path)
    box.add(REPORT)
    read_only = sqlite3.connect(f"file:{tmp_path / 'outbox.db'}?mode=ro", uri=True, isolation_level=None)
    monkeypatch.setattr(box, "_database", read_only)
    box.add(REPORT)
    assert box.held == 1
    box.flush()
    assert (box.held, box.waiting()) == (0, 2)
    box.close()


def test_a_spool_that_cannot_be_read_now_says_nothing_and_loses_nothing(tmp_path: Path) -> None:
    box = opened(tmp_path)
    box.add(REPORT)
    box.close()
    kept = (tmp_path / "outbox.db").rename(tmp_path / "elsewhere")
    (tmp_path / "outbox.db").mkdir()
    assert (box.due(0.0), box.newest_reports()) == ([], [])
    (tmp_path / "outbox.db").rmdir()
    kept.rename(tmp_path / "outbox.db")
    assert len(box.due(1.0)) == 1
    assert [report.state for report in box.newest_reports()] == [State.ACTIVE]
    box.close()
