"""Planning and making a campaign over the whole fleet."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import func, select

from benchmarks.scale import million
from covey_server.audit import Actor
from covey_server.campaigns import commands
from covey_server.campaigns.plan_views import plan_view
from covey_server.campaigns.planning import prepare
from covey_server.core.spec import read_spec
from covey_server.db.engine import Database
from covey_server.db.tables import CampaignDevice

OPERATOR = Actor("scale", "operator", "benchmark")
FILE = """\
name: {name}
model: digits
version: "{version}"
stages:
  - {{name: pilot, group: pilot, soak: 10m}}
  - {{name: one, percent: 1, soak: 1h}}
  - {{name: ten, percent: 10, soak: 1d}}
  - {{name: rest, percent: 100}}
min_reached: 0.9
gates:
  install_failures: {{max_rate: 0.05, max_count: 1000000}}
on_breach: pause
"""


def measure(database: Database) -> dict[str, Any]:
    """Seconds of a dry run, and of making the campaign for good."""
    text = FILE.format(name="digits-1.1", version="1.1")
    spec, document = read_spec(text)
    began = time.perf_counter()
    with database.reading() as session:
        view = plan_view(session, spec, prepare(session, spec, 7, document.error))
    planned = time.perf_counter()
    with database.session() as session:
        commands.create(session, spec, text, 7, document.error, OPERATOR, million.NOW_MS)
    made = time.perf_counter()
    with database.reading() as session:
        stages = dict(
            session.execute(select(CampaignDevice.stage, func.count()).group_by(CampaignDevice.stage)).tuples().all()
        )
    assert {stage.index: stage.count for stage in view.stages} == {k: v for k, v in stages.items() if k >= 0}  # noqa: S101
    return {
        "dry_run_s": round(planned - began, 2),
        "plan_s": round(made - planned, 2),
        "stages": {str(stage): devices for stage, devices in sorted(stages.items())},
        "choices": len({(c.profile, c.build) for stage in view.stages for c in stage.choices}),
    }
