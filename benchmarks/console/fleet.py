"""A made-up fleet of some thousand devices in the middle of its life, in the database of a real server: versions that serve, five
minutes of telemetry, reports, groups, campaigns that ended and one under way, and an audit log.

Devices and versions come from `benchmarks.scale.million`; the rest is written here by a few statements each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from benchmarks.scale.million import MODEL, NOW_MS, add_devices, add_versions, settle
from covey_contract.histogram import Recorder
from covey_server import audit
from covey_server.audit import Actor
from covey_server.campaigns import commands
from covey_server.core.document import parse
from covey_server.core.spec import parse_spec
from covey_server.db import tables as t
from covey_server.fleet.sql import table_of
from covey_server.services import Services

ACTOR = Actor("admin", "admin", "api 127.0.0.1")
CAMPAIGN = """\
name: {name}
model: digits
version: "{version}"
stages:
  - {{name: pilot, group: pilot, soak: 10m}}
  - {{name: tenth, percent: 10, soak: 1h}}
  - {{name: rest, percent: 100}}
gates:
  errors: {{max_rate: 0.01}}
  latency: {{quantile: 0.99}}
"""
STEPS = ("assigned", "fetching", "verifying", "staged", "warming", "probation", "active")
WINDOW_MS = 10_000
_CHUNK = 5_000


def fill(use: Services, devices: int, windows: int, ended: int) -> dict[str, int]:
    """`windows` of each device's telemetry, `ended` campaigns; how many rows there are of what."""
    add_devices(use.database, devices)
    add_versions(use.database, "1.0", "1.1", "1.2")
    draw = random.Random(7)  # seeded: the same fleet each time
    with use.database.session() as session:
        serving = _serve(session, draw)
    with use.database.session() as session:
        measured = _measure(session, draw, serving, windows)
    with use.database.session() as session:
        _groups(session)
    for number in range(ended):
        _campaign(use, f"digits-1.1-{number}", "1.1", "done")
    _campaign(use, "digits-1.2", "1.2", "running")
    with use.database.session() as session:
        for number in range(2_000):
            audit.record(session, ACTOR, "device.labels", f"dev-{number:07}", {"labels": {"line": "a"}}, NOW_MS)
    settle(use.database)
    return {"devices": devices, "windows": measured, "campaigns": ended + 1}


def _serve(session: Session, draw: random.Random) -> dict[str, str]:
    """Nine in ten devices run 1.1, the others 1.0; one in a hundred is on its way, one in two hundred failed. Their builds."""
    builds = {
        (version, target): (build, digest, version_id)
        for version, target, build, digest, version_id in session.execute(
            select(t.Version.name, t.Build.target, t.Build.id, t.Build.digest, t.Version.id).join(
                t.Build, t.Build.version_id == t.Version.id
            )
        )
    }
    targets = sorted({target for _, target in builds})
    orders: list[dict[str, Any]] = []
    wanted: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    serving: dict[str, str] = {}
    for device in session.scalars(select(t.Device.id).order_by(t.Device.id)):
        version, target = ("1.1" if draw.random() < 0.9 else "1.0"), draw.choice(targets)
        build, digest, version_id = builds[version, target]
        luck = draw.random()
        state = "fetching" if luck < 0.01 else "failed" if luck < 0.015 else "active"
        active = digest if state == "active" else builds["1.0", target][1] if version == "1.1" else None
        why = {"chosen": {"target": target, "build": build, "reason": "ranked highest"}, "lost": []}
        order = f"{device}-{version}"
        orders.append(
            {
                "id": order, "device": device, "counter": 1, "model": MODEL, "version_id": version_id, "build_id": build, "kind": "rollout",
                "why": why, "probation": {}, "issued_ms": NOW_MS - 900_000, "expires_ms": NOW_MS + 10**9, "sent_ms": NOW_MS - 900_000,
                "state": state, "reason": "none", "detail": "", "bytes_fetched": 0, "updated_ms": NOW_MS - 800_000,
            }
        )  # fmt: skip
        wanted.append({"device": device, "model": MODEL, "assignment": order})
        held.append(
            {
                "device": device, "model": MODEL, "active": active, "assignment": order, "state": state, "reason": "none",
                "detail": "", "updated_ms": NOW_MS - 800_000,
            }
        )  # fmt: skip
        steps = STEPS if state == "active" else (*STEPS[:2], state)
        said += [
            {
                "device": device, "seq": number, "at_ms": NOW_MS - 900_000 + number * 1000, "received_ms": NOW_MS - 900_000 + number * 1000,
                "assignment": order, "model": MODEL, "version": version, "build": digest, "state": step, "reason": "none", "detail": "",
            }
            for number, step in enumerate(steps)
        ]  # fmt: skip
        if active is not None:
            serving[device] = active
    for table, rows in ((t.AssignmentRow, orders), (t.Desired, wanted), (t.Reported, held), (t.ReportRow, said)):
        for part in _parts(rows):
            session.execute(insert(table_of(table)), part)
    return serving


def _measure(session: Session, draw: random.Random, serving: dict[str, str], windows: int) -> int:
    """The last windows of every device that serves; a few shapes of latency are enough, every row is merged all the same."""
    shapes = [_histogram(draw) for _ in range(50)]
    versions: dict[str, str] = dict(
        session.execute(
            select(t.Build.digest, t.Version.name).join(t.Version, t.Version.id == t.Build.version_id)
        ).all()  # type: ignore[arg-type]  # rows of two are pairs
    )
    total = 0
    for number in range(windows):
        end = NOW_MS - (windows - number) * WINDOW_MS + 5_000
        rows = [
            {
                "device": device, "seq": 1_000 + number, "part": 0, "start_ms": end - WINDOW_MS, "end_ms": end, "received_ms": end + 200,
                "model": MODEL, "version": versions[build], "build": build, "probation": False, "ok": 100, "failed": int(draw.random() < 0.02),
                "fallbacks": 0, "errors": {}, "histograms": {"end_to_end": draw.choice(shapes)}, "outputs": {}, "inputs": {}, "resources": None,
            }
            for device, build in serving.items()
        ]  # fmt: skip
        for part in _parts(rows):
            session.execute(insert(table_of(t.TelemetryRow)), part)
        total += len(rows)
    return total


def _histogram(draw: random.Random) -> Any:
    recorder = Recorder()
    for _ in range(100):
        recorder.record(0.004 * draw.lognormvariate(0, 0.25))
    return msgspec.to_builtins(recorder.snapshot())


def _groups(session: Session) -> None:
    for number in range(20):
        session.add(
            t.Group(
                name=f"site-{number}", description="", selector={"labels.site": f"site-{number}"}, created_ms=NOW_MS
            )
        )
        session.add(t.Group(name=f"list-{number}", description="a fixed list", selector=None, created_ms=NOW_MS))
    session.flush()
    members = [{"group_name": f"list-{number % 20}", "device": f"dev-{number:07}"} for number in range(0, 2_000)]
    session.execute(insert(table_of(t.GroupMember)), members)


def _campaign(use: Services, name: str, version: str, state: str) -> None:
    text = CAMPAIGN.format(name=name, version=version)
    with use.database.session() as session:
        row = commands.create(session, parse_spec(text), text, 7, parse(text).error, ACTOR, NOW_MS - 3_600_000)
        done = state == "done"
        row.state, row.started_ms, row.stage_started_ms = state, NOW_MS - 3_500_000, NOW_MS - 600_000
        row.stage, row.finished_ms = (2, NOW_MS - 60_000) if done else (1, None)
        row.waiting_for = "" if done else "tenth: 700 of 1000 active; 300 in progress; soak 3600 s left"
        parts = update(t.CampaignDevice).where(t.CampaignDevice.campaign_id == row.id, t.CampaignDevice.stage >= 0)
        reached = parts if done else parts.where(t.CampaignDevice.stage <= 1)
        session.execute(
            reached.values(state="active", assigned_ms=NOW_MS - 3_000_000, active_ms=NOW_MS - 2_900_000, served=True),
            execution_options={"synchronize_session": False},
        )


def _parts(rows: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
