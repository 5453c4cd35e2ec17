"""Campaigns on a real database, through the service's own looks, with devices that speak real messages into the real store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from covey_contract.facts import Facts
from covey_server.core.document import DocumentError
from covey_server.core.engine import Action
from covey_server.db.tables import (
    AssignmentRow,
    AuditEntry,
    Build,
    Desired,
    GroupMember,
    Version,
)
from covey_server.errors import Conflict, Invalid
from covey_server.fleet.assignments import NewOrder, issue

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig


def test_three_stages_one_after_the_other(rig: Rig) -> None:
    name = rig.create("1.1")
    view = rig.run_until(name, "done")
    assert set(rig.running().values()) == {"1.1"}
    assert view.waiting_for == "done: 6 of 6 devices active"
    assert [stage.state for stage in view.stages] == ["passed"] * 3
    when = {device: at_ms for at_ms, device, _, _ in rig.sent}
    assert when["press-2"] - when["press-1"] >= 5000
    assert when["press-4"] - when["press-3"] >= 3000
    kinds = [event.kind for event in rig.events(name)]
    assert kinds[:4] == ["created", "started", "stage_started", "assigned"]
    assert kinds[-2:] == ["stage_passed", "done"]
    passed = next(event for event in rig.events(name) if event.kind == "stage_passed")
    latency = next(gate for gate in passed.detail["gates"] if gate["gate"] == "latency")
    assert latency["status"] == "passing"
    assert latency["requests"] >= 100
    assert latency["ratio"] == pytest.approx(1.05, abs=0.15)


def test_it_says_what_it_waits_for(rig: Rig) -> None:
    name = rig.create("1.1")
    seen = set()
    for _ in range(12):
        rig.run()
        seen.add(rig.show(name).waiting_for)
    assert "canary: orders are going out" in seen
    assert any("canary: 1 of 1 active; errors has 0 of 50 requests; latency has" in words for words in seen)
    assert any("soak 1 s left" in words for words in seen)


def test_a_slow_version_goes_back_by_itself(rig: Rig) -> None:
    name = rig.create("1.2")
    view = rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}
    assert {device for _, device, version, _ in rig.sent if version == "1.2"} == {"press-1"}
    assert view.verdict is not None
    assert (view.verdict["gate"], view.verdict["stage"], view.verdict["status"]) == ("latency", "canary", "breached")
    assert view.verdict["ratio"] > 5
    assert view.halt_to_restored_s is not None
    assert 0 <= view.halt_to_restored_s <= 3
    part = rig.parts(name)["press-1"]
    assert part.state == "rolled_back"
    assert part.restored_ms is not None
    assert {each.state for device, each in rig.parts(name).items() if device != "press-1"} == {"planned"}
    assert [event.kind for event in rig.events(name)][-4:] == [
        "gate_breached",
        "rolling_back",
        "restoring",
        "rolled_back",
    ]


def test_errors_that_fall_back_trip_too(rig: Rig) -> None:
    rig.failing["1.1"] = 0.2
    name = rig.create("1.1")
    view = rig.run_until(name, "rolled_back")
    assert view.verdict is not None
    assert view.verdict["gate"] == "errors"


def test_install_failures_trip_and_a_device_that_went_back_itself_counts_as_restored(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    name = rig.create("1.1")
    view = rig.run_until(name, "rolled_back")
    assert view.verdict is not None
    assert (view.verdict["gate"], view.verdict["failures"]) == ("install_failures", 1)
    assert rig.parts(name)["press-1"].state == "restored_locally"
    assert set(rig.running().values()) == {"1.0"}
    with rig.database.reading() as session:
        wanted = session.execute(
            select(Version.name)
            .join(AssignmentRow, AssignmentRow.version_id == Version.id)
            .join(Desired, Desired.assignment == AssignmentRow.id)
            .where(Desired.device == "press-1")
        ).scalar_one()
    assert wanted == "1.0"


def test_a_breach_may_pause_and_a_person_may_go_on(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="pause")
    view = rig.run_until(name, "paused")
    assert view.waiting_for.startswith("paused: canary: latency")
    sent = len(rig.sent)
    rig.run(20)
    assert (rig.show(name).state, len(rig.sent)) == ("paused", sent)
    rig.act(name, Action.RESUME)
    rig.run(30)
    view = rig.show(name)
    assert view.stage >= 1  # accepted for the canary; the next stage is judged anew
    assert rig.run_until(name, "paused").gates_stage == "line-a"


def test_a_breach_may_halt_and_a_person_rolls_back(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt")
    view = rig.run_until(name, "halted")
    assert "roll back or abort" in view.waiting_for
    with pytest.raises(Conflict, match="halted cannot resume"):
        rig.act(name, Action.RESUME)
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_a_device_that_is_off_does_not_block_and_catches_up(rig: Rig) -> None:
    rig.power("press-5", on=False)
    name = rig.create("1.1")
    view = rig.run_until(name, "done")
    assert view.waiting_for == "done: 5 of 6 devices active, 1 to catch up"
    assert rig.running()["press-5"] == "1.0"
    rig.power("press-5", on=True)
    rig.run(3)
    assert rig.running()["press-5"] == "1.1"
    assert rig.parts(name)["press-5"].state == "active"


def test_a_device_that_was_off_while_the_rest_went_back_never_runs_the_version(rig: Rig) -> None:
    rig.power("press-1", on=False)
    with rig.database.session() as session:
        session.add(GroupMember(group="canary", device="press-2"))
    name = rig.create("1.2")
    rig.run_until(name, "rolled_back")
    assert rig.parts(name)["press-1"].state == "skipped"
    rig.power("press-1", on=True)
    rig.run(5)
    assert set(rig.running().values()) == {"1.0"}
    assert ("press-1", "1.2") not in {(device, version) for _, device, version, _ in rig.sent}


def test_a_reached_device_that_is_off_does_not_hold_up_the_return_for_ever(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt", canary="count: 2, soak: 5s")
    rig.run_until(name, "halted")
    off = next(device for device, version in rig.running().items() if version == "1.2")
    rig.power(off, on=False)
    rig.act(name, Action.ROLLBACK)
    rig.run(5)
    assert rig.show(name).state == "rolling_back"
    view = rig.run_until(name, "rolled_back", seconds=40)
    assert view.waiting_for == "rolled back: 1 of 2 devices restored, 1 off; their order waits for them"
    rig.power(off, on=True)
    rig.run(3)
    assert set(rig.running().values()) == {"1.0"}
    assert rig.parts(name)[off].state == "rolled_back"


def test_nothing_goes_out_while_paused_or_after_an_abort(rig: Rig) -> None:
    name = rig.create("1.1")
    rig.run(2)
    rig.act(name, Action.PAUSE)
    rig.act(name, Action.PAUSE)
    rig.run(30)
    assert {device for _, device, _, _ in rig.sent} == {"press-1"}
    assert rig.show(name).waiting_for == "paused by ann in stage canary"
    rig.act(name, Action.RESUME)
    rig.run(3)
    rig.act(name, Action.ABORT)
    sent = len(rig.sent)
    rig.run(30)
    assert len(rig.sent) == sent
    assert rig.show(name).state == "aborted"
    with rig.database.reading() as session:
        actions = list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))
    assert actions == [f"campaign.{word}" for word in ("create", "start", "pause", "resume", "abort")]


def test_a_soak_can_be_skipped_and_a_done_campaign_rolled_back(rig: Rig) -> None:
    name = rig.create("1.1", canary="group: canary, soak: 1h")
    rig.run(60)
    assert rig.show(name).stage == 0
    rig.act(name, Action.SKIP_SOAK)
    rig.act(name, Action.SKIP_SOAK)
    rig.run_until(name, "done")
    rig.act(name, Action.ROLLBACK)
    assert rig.run_until(name, "rolled_back").restored == 6
    assert set(rig.running().values()) == {"1.0"}


def test_devices_without_a_build_before_go_back_to_none(rig: Rig) -> None:
    rig.add_device("fresh", "canary")
    rig.latency_ms["1.1"] = 4.0
    name = rig.create("1.1")
    rig.run(6)
    assert rig.running()["fresh"] == "1.1"
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert rig.running() == {**{f"press-{number}": "1.0" for number in range(1, 7)}, "fresh": None}


def test_a_server_that_restarts_goes_on_where_it_was(rig: Rig) -> None:
    name = rig.create("1.1")
    for _ in range(80):
        rig.restart()
        rig.run()
    assert rig.show(name).state == "done"
    assert sorted(device for _, device, _, _ in rig.sent) == sorted(rig.devices)


def test_looking_again_without_news_changes_nothing(rig: Rig) -> None:
    name = rig.create("1.1")
    rig.run(4)
    before = (rig.show(name), rig.events(name), rig.parts(name))
    for _ in range(5):
        rig.service.tick()
    assert (rig.show(name), rig.events(name), rig.parts(name)) == before


def test_two_campaigns_never_share_a_device_of_a_model(rig: Rig) -> None:
    first = rig.create("1.1")
    second = rig.create("1.2", start=False)
    with pytest.raises(Conflict, match="digits-1.1 is under way with digits") as caught:
        rig.act(second, Action.START)
    assert caught.value.extra["campaigns"] == [first]
    with pytest.raises(Conflict, match="there is a campaign named digits-1.1"):
        rig.create("1.1")
    rig.run_until(first, "done")
    rig.act(second, Action.START)
    rig.run(2)
    with pytest.raises(Conflict, match="digits-1.2 is under way"):
        rig.act(first, Action.ROLLBACK)


def test_an_order_by_a_person_takes_the_device_out_of_the_campaign(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt")
    rig.run_until(name, "halted")
    with rig.database.session() as session:
        build = session.scalars(select(Build).join(Version).where(Version.name == "1.1")).one()
        issue(session, [NewOrder("press-1", "digits", build.version_id, build.id, "manual")], rig.now_ms)
    rig.run(2)
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert rig.running()["press-1"] == "1.1"
    assert rig.parts(name)["press-1"].state == "skipped"


def test_a_device_that_runs_the_version_already_is_left_alone(rig: Rig) -> None:
    rig.run_until(rig.create("1.1"), "done")
    rig.sent.clear()
    again = rig.create("1.1", name="name: again")
    view = rig.run_until("again-1.1", "done")
    assert rig.sent == []
    assert view.active == 6
    assert again == "again-1.1"


def test_those_that_run_it_already_do_not_wait_for_one_that_is_off(rig: Rig) -> None:
    rig.run_until(rig.create("1.1"), "done")
    build = rig.devices["press-6"].active
    with rig.database.session() as session:
        old = session.scalars(select(Build).join(Version).where(Version.name == "1.0")).one()
        issue(session, [NewOrder("press-6", "digits", old.version_id, old.id, "manual")], rig.now_ms)
    rig.run(2)
    assert rig.devices["press-6"].active != build
    rig.power("press-6", on=False)
    rig.create("1.1", name="name: again")
    view = rig.run_until("again-1.1", "done")
    assert view.waiting_for == "done: 5 of 6 devices active, 1 to catch up"


def test_devices_without_a_fitting_build_are_left_out_with_the_reason(rig: Rig) -> None:
    rig.add_device("odd", facts=Facts(architecture="s390x", simulated=True))
    name = rig.create("1.1")
    part = rig.parts(name)["odd"]
    assert (part.state, part.stage, part.build) == ("skipped", None, None)
    assert part.detail
    assert part.why["chosen"] is None
    assert rig.show(name).left_out == 1
    chosen = rig.parts(name)["press-1"].why["chosen"]
    assert chosen["target"] == "onnxruntime-fp32"
    assert chosen["reason"]


def test_a_file_that_names_what_is_not_there_is_refused_with_the_line(rig: Rig) -> None:
    with pytest.raises(DocumentError, match=r"line 5: stages\[0\].group: there is no group elsewhere"):
        rig.create("1.1", canary="group: elsewhere")
    with pytest.raises(DocumentError, match="line 3: version: there is no version 9.9 of model digits"):
        rig.create("9.9")
    with rig.database.session() as session:
        session.execute(update(Build).values(state="refused"))
    with pytest.raises(Invalid, match="no device of the target gets a build"):
        rig.create("1.1")
