"""`covey campaign …`: approval, clones, stages, devices; what is asked of the server, what is printed, and the exit codes."""

from __future__ import annotations

from pathlib import Path

from tests.unit.client.conftest import FakeServer
from tests.unit.client.test_client_cli import Covey, campaign, covey

__all__ = ["covey"]  # the fixture

ROUTE = "/api/v1/campaigns/digits-1.1"


def test_approve_a_campaign_or_one_of_its_stages(covey: Covey, server: FakeServer) -> None:
    server.on(f"POST {ROUTE}/approve", campaign("running"))
    assert covey("campaign", "approve", "digits-1.1")[0] == 0
    assert covey("campaign", "approve", "digits-1.1", "--stage", "line-a")[0] == 0
    assert [asked.query for asked in server.asked] == [{}, {"stage": ["line-a"]}]
    server.refuse(f"POST {ROUTE}/approve", 403, "ann made the campaign; somebody else has to approve it")
    code, _, err = covey("campaign", "approve", "digits-1.1")
    assert (code, err) == (1, "covey: ann made the campaign; somebody else has to approve it\n")


def test_roll_back_or_retry_one_stage_alone(covey: Covey, server: FakeServer) -> None:
    for action in ("rollback", "retry"):
        server.on(f"POST {ROUTE}/{action}", campaign("rolling_back"))
        assert covey("campaign", action, "digits-1.1", "--stage", "canary")[0] == 0
        assert server.asked[-1].query == {"stage": ["canary"]}
    assert covey("campaign", "pause", "digits-1.1", "--stage", "canary")[0] == 2


def test_close(covey: Covey, server: FakeServer) -> None:
    server.on(f"POST {ROUTE}/close", campaign("done", is_open=False))
    assert covey("campaign", "close", "digits-1.1") == (0, "digits-1.1: done; canary: 1 of 2 active\n", "")


def test_clone_and_start(covey: Covey, server: FakeServer) -> None:
    server.on(f"POST {ROUTE}/clone", campaign("planned", name="again", waiting_for="to be started"), status=201)
    code, out, _ = covey("campaign", "clone", "digits-1.1", "again", "--version", "1.2")
    assert (code, out) == (0, "again: planned; 2 devices; to be started\n")
    assert server.asked[-1].json == {"name": "again", "version": "1.2"}
    server.on("POST /api/v1/campaigns/again/start", campaign("running", name="again"))
    code, document = covey.json("campaign", "clone", "digits-1.1", "again", "--start")
    assert (code, document["state"]) == (0, "running")
    assert server.asked[-2].json == {"name": "again"}


def test_create_leaves_it_planned(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("name: digits-1.1\n")
    server.on("POST /api/v1/campaigns", campaign("planned"), status=201)
    assert covey("campaign", "create", str(file))[0] == 0
    assert server.asked[0].query == {"start": ["false"]}


def test_devices_and_drift(covey: Covey, server: FakeServer) -> None:
    part = {
        "device": "press-1",
        "stage_name": "canary",
        "state": "active",
        "progress": "served",
        "drifted_ms": 5000,
        "build": {"version": "1.1", "target": "openvino-int8"},
        "previous": None,
        "detail": "",
        "reason": "none",
    }
    waiting = {**part, "device": "press-2", "state": "assigned", "progress": "not_reached", "drifted_ms": None}
    server.on(f"GET {ROUTE}/devices", {"items": [part, waiting], "next": None})
    code, out, _ = covey("campaign", "devices", "digits-1.1", "--drifted", "--stage", "canary", "--state", "active")
    assert code == 0
    query = server.asked[-1].query
    assert (query["drifted"], query["stage"], query["state"]) == (["true"], ["canary"], ["active"])
    assert "drifted" in out
    assert "not reached" in out
    code, document = covey.json("campaign", "devices", "digits-1.1")
    assert (code, len(document["items"])) == (0, 2)
    assert "drifted" not in server.asked[-1].query


def test_show_tells_apart_what_is_different(covey: Covey, server: FakeServer) -> None:
    shown = campaign("queued", approval="waiting", drifted=3, is_open=True)
    progress = {"served": 11, "in_progress": 12, "waiting": 13, "not_reached": 14, "unknown": 15}
    shown["stages"][0] |= {"progress": progress, "approval": "bob"}
    server.on(f"GET {ROUTE}", shown)
    code, out, _ = covey("campaign", "show", "digits-1.1")
    assert code == 0
    for words in ("not given yet", "3 run something else by now", "for devices that come later", "approved by bob"):
        assert words in out
    for number in progress.values():
        assert f" {number} " in out
    server.on(f"GET {ROUTE}", campaign("queued"), campaign("running"), campaign("done"))
    assert covey("campaign", "watch", "digits-1.1")[0] == 0
