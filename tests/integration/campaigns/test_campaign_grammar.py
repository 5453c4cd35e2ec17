"""What a campaign file says of breaches, of going back and of people, on a real database; and the README's file.

Pace and times are in `test_campaign_times`, devices in `test_campaign_devices`, targets in `test_campaign_targets`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from covey_server.audit import Actor
from covey_server.campaigns import commands
from covey_server.core.engine import Action
from covey_server.db.tables import AuditEntry
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound
from tests.integration.campaigns.conftest import ANN, BOB
from tests.integration.campaigns.grammar import text

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig

ROOT = Path(__file__).resolve().parents[3]


def test_the_readmes_campaign_file_runs_as_written(rig: Rig) -> None:
    lines = (
        (ROOT / "README.md")
        .read_text()
        .split("$ cat > first.yaml\n")[1]
        .split("    $ covey campaign start first.yaml")[0]
    )
    rig.add_device("lab-1", "canary").idle = True
    name = rig.make(textwrap.dedent(lines))
    view = rig.run_until(name, "done", seconds=30)
    assert rig.running()["lab-1"] == "1.0"
    assert view.waiting_for == "done: 7 of 7 devices active"


# --- breaches and going back -------------------------------------------------------------------------------------------

TWO = "  - {name: first, count: 2, soak: 5s}\n  - {name: rest, percent: 100, soak: 1h}"


def test_a_breach_may_take_back_its_stage_alone(rig: Rig) -> None:
    name = rig.make(
        text("on_breach: {action: rollback, scope: stage}", "gates: {install_failures: {max_count: 0}}", stages=TWO)
    )
    rig.run(12)
    view = rig.show(name)
    assert view.stage_name == "rest"
    last = next(device for device, part in rig.parts(name).items() if part.stage_name == "rest")
    rig.crash(last)
    view = rig.run_until(name, "halted")
    assert view.going_back == ["rest"]
    assert "roll back the rest or abort" in view.waiting_for
    versions = [rig.running()[device] for device, part in rig.parts(name).items() if part.stage_name == "first"]
    assert versions == ["1.1", "1.1"]
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_one_stage_can_be_rolled_back_by_its_name(rig: Rig) -> None:
    name = rig.make(text(stages=TWO))
    rig.run(12)
    with pytest.raises(Invalid, match="there is no stage moon"):
        rig.act(name, Action.ROLLBACK, stage="moon")
    with pytest.raises(Invalid, match="pause is said of a whole campaign"):
        rig.act(name, Action.PAUSE, stage="first")
    rig.act(name, Action.ROLLBACK, stage="first")
    rig.act(name, Action.ROLLBACK, stage="first")
    rig.run_until(name, "halted")
    by_stage = {part.stage_name: rig.running()[device] for device, part in rig.parts(name).items()}
    assert by_stage == {"first": "1.0", "rest": "1.1"}
    rig.act(name, Action.ABORT)
    assert rig.show(name).state == "aborted"


def test_gates_of_a_stage_take_the_place_of_the_campaigns(rig: Rig) -> None:
    stages = "  - {name: first, count: 2, gates: {install_failures: {max_rate: 1}}}\n  - {name: rest, percent: 100}"
    for device in rig.devices.values():
        device.refuses = {"1.1"}
    name = rig.make(text("gates: {install_failures: {max_count: 0}}", "on_breach: halt", stages=stages))
    view = rig.run_until(name, "halted")
    assert view.verdict is not None
    assert view.verdict["stage"] == "rest"


def test_min_reached_of_a_stage(rig: Rig) -> None:
    for number in (1, 2, 3):
        rig.power(f"press-{number}", on=False)
    name = rig.make(text("min_reached: 1", stages="  - {name: all, percent: 100, min_reached: 0.5}"))
    rig.run_until(name, "done")


# --- people ------------------------------------------------------------------------------------------------------------


def test_approval(rig: Rig) -> None:
    stages = "  - {name: first, count: 1}\n  - {name: rest, percent: 100, approval: true}"
    name = rig.make(text("approval: true", stages=stages))
    rig.run(5)
    view = rig.show(name)
    assert (view.state, view.approval, view.waiting_for) == (
        "queued",
        "waiting",
        "queued: waits for approval by somebody other than ann",
    )
    assert rig.sent == []
    with pytest.raises(Forbidden, match="this needs the role approver; ann has the role operator"):
        rig.act(name, Action.APPROVE)
    with pytest.raises(Forbidden, match="somebody else has to approve it"):
        rig.act(name, Action.APPROVE, Actor("ann", "admin", "test"))
    with pytest.raises(Forbidden, match="needs the role operator"):
        rig.act(name, Action.PAUSE, BOB)
    rig.act(name, Action.APPROVE, BOB)
    rig.act(name, Action.APPROVE, BOB)
    rig.run(15)
    view = rig.show(name)
    assert (view.approval, view.state, view.stage_name) == ("bob", "running", "rest")
    assert view.stages[1].approval == "waiting"
    assert len(rig.sent) == 1
    rig.act(name, Action.APPROVE, BOB)
    rig.run_until(name, "done")
    with rig.database.reading() as session:
        said = session.execute(select(AuditEntry.who, AuditEntry.action).order_by(AuditEntry.id)).all()
    assert [tuple(row) for row in said] == [
        ("ann", "campaign.create"),
        ("ann", "campaign.start"),
        ("bob", "campaign.approve"),
        ("bob", "campaign.approve"),
    ]


def test_a_stage_can_be_approved_before_its_time(rig: Rig) -> None:
    stages = "  - {name: first, count: 1}\n  - {name: rest, percent: 100, approval: true}"
    name = rig.make(text(stages=stages))
    rig.act(name, Action.APPROVE, BOB, stage="rest")
    rig.run_until(name, "done")


def test_a_queued_campaign_starts_by_itself_and_the_most_urgent_first(rig: Rig) -> None:
    first = rig.make(text(name="first", stages="  - {name: all, percent: 100, soak: 10s}"))
    slow = rig.make(text("conflict: queue", name="slow", version="1.2"))
    urgent = rig.make(text("conflict: queue", "priority: 7", name="urgent", version="1.0"))
    with pytest.raises(Conflict, match="first is under way"):
        rig.make(text(name="proud", version="1.2"))
    rig.run(3)
    assert rig.show(slow).waiting_for == "queued: waits for first to end"
    rig.run_until(first, "done")
    rig.run(1)
    assert (rig.show(urgent).state, rig.show(slow).state) == ("running", "queued")
    rig.run_until(slow, "done")
    assert set(rig.running().values()) == {"1.2"}
    order = [version for _, device, version, _ in rig.sent if device == "press-1"]
    assert order == ["1.1", "1.0", "1.2"]


def test_a_clone_has_the_same_file_under_another_name(rig: Rig) -> None:
    source = text("# nightly", name="c", stages="  - {name: all, percent: 100}  # everybody")
    rig.make(source)
    with rig.database.session() as session:
        commands.clone(session, "c", "d", "1.2", 9, ANN, rig.now_ms)
        with pytest.raises(NotFound, match="there is no campaign moon"):
            commands.clone(session, "moon", "e", None, 9, ANN, rig.now_ms)
        with pytest.raises(Conflict, match="there is a campaign named d already"):
            commands.clone(session, "c", "d", None, 9, ANN, rig.now_ms)
    view = rig.show("d")
    assert (view.version, view.state, view.seed) == ("1.2", "planned", 9)
    assert view.source == source.replace("name: c\n", 'name: "d"\n').replace('"1.1"', '"1.2"')
