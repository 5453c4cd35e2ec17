"""What no line of a campaign's log says, and is told all the same: approvals that are waited for, devices left out from now on.

The campaigns are made and told what to do by the campaigns' own commands, so that the two cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from covey_contract.building import Latency
from covey_contract.facts import Facts, RuntimeFact
from covey_hil.testing.rows import add_build, add_version, report_of
from covey_profiles import load_profiles, match
from covey_server.audit import Actor
from covey_server.bus import Bus
from covey_server.campaigns import commands
from covey_server.core.engine import Action
from covey_server.core.spec import read_spec
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Build, Campaign, CampaignDevice, Device, Notice
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.notifications.mail import Mailer
from covey_server.notifications.outbox import Mailing
from covey_server.notifications.sealing import Seal
from covey_server.notifications.sending import Sender
from covey_server.notifications.service import NotificationService
from covey_server.settings import Settings

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import FakeClock

ANNA, BERT = Actor("anna", "admin", "test"), Actor("bert", "admin", "test")
FILE = """\
name: {name}
model: digits
version: "1.1"
{more}
stages:
  - {{name: canary, count: 1{stage}}}
  - {{name: rest, percent: 100}}
"""


@pytest.fixture
def service(any_database: Database, clock: FakeClock, tmp_path: Path) -> NotificationService:
    """A service that collects when it is told to, over a fleet of one device with a version that fits it."""
    runtime = RuntimeFact(name="onnxruntime", version="1.31.1")
    facts = Facts(
        architecture="x86_64", cpu_cores=4, memory_mb=8000, libc="glibc 2.36", runtimes=(runtime,), simulated=True
    )
    profile = match(facts, load_profiles()).profile
    with any_database.session() as session:
        version = add_version(session, "1.1")
        latency = Latency(p50_ms=1.0, p99_ms=2.0, load_ms=9.0, first_ms=3.0, peak_rss_mb=40.0, machine="a test")
        report = report_of("onnxruntime-fp32", 9, latency=latency)
        add_build(session, version, "ab" * 32, size=9, report=report)
        session.add(
            Device(
                id="press-1",
                profile=None if profile is None else profile.id,
                simulated=True,
                facts=msgspec.to_builtins(facts),
                facts_digest=facts.digest(),
                enrolled_ms=1,
                online=True,
            )
        )
    settings = Settings(data=tmp_path)
    sender = Sender(Mailer(settings), private=False, timeout_s=1)
    made = NotificationService(any_database, clock, Bus(), Seal.load_or_create(tmp_path), sender, Mailing())
    made.collect()
    return made


def _make(session: Session, name: str, now_ms: int, *, more: str = "", stage: str = "") -> None:
    spec, document = read_spec(FILE.format(name=name, more=more, stage=stage).encode(), is_json=False)
    commands.create(session, spec, "", 1, document.error, ANNA, now_ms)


def _told(database: Database, event: str) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(Notice.summary).where(Notice.event == event).order_by(Notice.id)))


def test_an_approval_that_is_waited_for_is_told_once(
    service: NotificationService, any_database: Database, clock: FakeClock
) -> None:
    with any_database.session() as session:
        _make(session, "free", clock())
        _make(session, "bound", clock(), more="approval: true")
    for _ in range(2):
        service.collect()
    words = "bound (digits 1.1, by anna) waits for approval"
    assert _told(any_database, "campaign.approval_wanted") == [words]
    with any_database.session() as session:
        commands.act(session, "bound", Action.APPROVE, BERT, clock())
    service.collect()
    assert _told(any_database, "campaign.approval_wanted") == [words]


def test_a_device_that_fails_again_and_again_is_told_of_when_its_campaign_ends(
    service: NotificationService, any_database: Database, clock: FakeClock
) -> None:
    for number in range(3):
        with any_database.session() as session:
            _make(session, f"try-{number}", clock())
            commands.act(session, f"try-{number}", Action.START, ANNA, clock())
        with any_database.session() as session:
            _issue_and_fail(session, f"try-{number}", clock())
            commands.act(session, f"try-{number}", Action.ABORT, ANNA, clock())
        service.collect()
        told = _told(any_database, "device.quarantined")
        assert len(told) == (1 if number == 2 else 0)
    assert told == ["press-1 is quarantined: it failed in 3 campaigns of digits one after the other"]


def _issue_and_fail(session: Session, name: str, now_ms: int) -> None:
    """The device's order of this campaign, and that it failed."""
    campaign = session.scalars(select(Campaign).where(Campaign.name == name)).one()
    build = session.scalars(select(Build)).one()
    (order,) = issue(
        session,
        [
            NewOrder(
                device="press-1",
                model="digits",
                version_id=campaign.version_id,
                build_id=build.id,
                kind="rollout",
                campaign_id=campaign.id,
                why={},
                probation={"seconds": 0.0},
            )
        ],
        now_ms,
    )
    session.execute(update(AssignmentRow).where(AssignmentRow.id == order).values(state="failed"))
    session.execute(
        update(CampaignDevice)
        .where(CampaignDevice.campaign_id == campaign.id)
        .values(assigned_ms=now_ms, state="failed")
    )
