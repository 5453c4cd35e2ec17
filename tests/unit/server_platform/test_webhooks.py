"""Webhooks from end to end: a real HTTP server, the service's own thread. Where they may lead is in `test_webhook_destinations`."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from covey_hil.testing.waiting import until
from tests.unit.server_platform.notified import SECRET, Desk, Receiver, desk_of, receiver_at


def test_a_message_is_signed_and_says_what_happened(desk: Desk, receiver: Receiver) -> None:
    made = desk.add(receiver, events=["build.failed"])
    assert made["secret"] == SECRET
    assert "secret" not in desk.call("GET", "/webhooks/chat")
    desk.tell()
    desk.tell("campaign 1", "campaign.halted")  # nobody wants that
    assert desk.round() == 1
    assert receiver.verified(SECRET) == {
        "type": "build.failed",
        "timestamp": "2027-01-15T08:00:00.000+00:00",
        "data": {"summary": "digits 1.0: it could not be built", "model": "digits", "campaign": "digits 1.0"},
    }
    headers = receiver.got[0][0]
    assert headers["webhook-timestamp"] == str(desk.site.clock() // 1000)
    assert headers["content-type"] == "application/json"
    (delivery,) = desk.deliveries()
    assert (delivery["state"], delivery["status"], delivery["attempts"]) == ("delivered", 204, 1)
    assert delivery["message"] == headers["webhook-id"]
    assert desk.round() == 0


def test_it_is_tried_again_later_and_later_with_the_same_id_and_then_given_up(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    receiver.answers = [(500, {})] * 11
    waited = 0
    while desk.deliveries()[:1] == [] or desk.deliveries()[0]["state"] == "pending":
        desk.round()
        delivery = desk.deliveries()[0]
        if delivery["due_ms"] is not None:
            assert desk.round() == 0  # not before its time
            desk.site.clock.now_ms = delivery["due_ms"]
            waited += 1
    assert (delivery["state"], delivery["attempts"], waited) == ("dead", 10, 9)
    assert delivery["error"] == "answered 500"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 10
    assert len({headers["webhook-signature"] for headers, _ in receiver.got}) == 10
    receiver.answers = []
    again = desk.call("POST", f"/deliveries/{delivery['id']}/retry")
    assert (again["state"], again["attempts"]) == ("pending", 0)
    assert desk.round() == 1
    assert desk.deliveries(state="delivered", webhook="chat")[0]["id"] == delivery["id"]
    desk.call("POST", f"/deliveries/{delivery['id']}/retry", status=409)


def test_a_receiver_says_when_to_come_again_and_when_never(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    receiver.answers = [(429, {"Retry-After": "77"}), (410, {})]
    began = desk.site.clock()
    desk.round()
    assert desk.deliveries()[0]["due_ms"] == began + 77_000
    desk.site.clock.pass_s(77)
    desk.round()
    assert desk.deliveries()[0]["state"] == "dead"
    hook = desk.call("GET", "/webhooks/chat")
    assert (hook["disabled_ms"], hook["disabled_why"]) == (desk.site.clock(), "its receiver answered 410 Gone")
    desk.tell("build 2")
    assert desk.round() == 0
    assert desk.call("PATCH", "/webhooks/chat", {"disabled": False})["disabled_why"] == ""
    desk.tell("build 3")
    assert desk.round() == 1


def test_the_secret_is_changed_without_a_gap(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    rotated = desk.call("POST", "/webhooks/chat/secret", {"overlap_s": 60})
    assert rotated["previous_secret_until_ms"] == desk.site.clock() + 60_000
    desk.tell()
    desk.round()
    receiver.verified(SECRET)
    receiver.verified(rotated["secret"])
    desk.site.clock.pass_s(60)
    desk.tell("build 2")
    desk.round()
    receiver.verified(rotated["secret"])
    with pytest.raises(AssertionError):
        receiver.verified(SECRET)


def test_no_secret_and_no_address_is_logged_or_shown(
    desk: Desk, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        desk.add(receiver)
        desk.tell()
        receiver.answers = [(500, {})]
        desk.round()
    assert "webhook chat: build.failed: answered 500; to be tried again" in caplog.text
    shown = json.dumps(desk.deliveries()) + desk.site.client.get("/api/v1/audit", headers=desk.site.as_("viewer")).text
    for word in (SECRET, "in-the-address"):
        assert word not in shown + caplog.text
    with desk.site.services.database.reading() as session:
        rows = session.connection().exec_driver_sql("SELECT secret, previous_secret FROM webhooks").all()
    assert SECRET.encode() not in bytes(rows[0][0])


def test_webhooks_are_for_administrators(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    for method, path in (
        ("GET", "/webhooks"),
        ("POST", "/webhooks"),
        ("PATCH", "/webhooks/chat"),
        ("DELETE", "/webhooks/chat"),
        ("POST", "/webhooks/chat/secret"),
        ("POST", "/webhooks/chat/test"),
        ("GET", "/deliveries"),
        ("POST", "/deliveries/1/retry"),
        ("POST", "/mail-test"),
    ):
        body = {"name": "x", "url": "https://x.example/", "recipient": "a@x.example"}
        answer = desk.site.client.request(method, f"/api/v1{path}", json=body, headers=desk.site.as_("operator"))
        assert answer.status_code == 403, path


def test_removing_one_takes_along_what_was_still_to_be_sent(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.call("POST", "/webhooks", {"name": "chat", "url": receiver.url}, 409)
    desk.tell()
    desk.service.collect()
    desk.call("DELETE", "/webhooks/chat", status=204)
    desk.call("GET", "/webhooks/chat", status=404)
    assert desk.round() == 0
    assert desk.deliveries() == []


# --- the thread -------------------------------------------------------------------------------------------------------


def test_the_thread_delivers_beside_a_receiver_that_hangs_and_stops(desk: Desk, receiver: Receiver) -> None:
    with receiver_at() as stuck:
        stuck.hold = threading.Event()
        desk.add(stuck, "stuck")
        desk.add(receiver, "chat")
        for number in range(6):
            desk.tell(f"build {number}")
        desk.service.start()
        try:
            until(lambda: len(receiver.got) == 6, "the other receiver is told")
            assert len(stuck.got) <= 2
        finally:
            stuck.hold.set()
            desk.service.stop()
    assert not [one for one in threading.enumerate() if one.name.startswith("notif")]
    assert {one["state"] for one in desk.deliveries(webhook="chat")} == {"delivered"}


def test_a_test_is_sent_at_once_and_to_one_alone(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver, events=["campaign.done"])
    desk.site.services.notifications = desk.service
    desk.service.start()
    try:
        sent = desk.call("POST", "/webhooks/chat/test", status=202)
        until(lambda: desk.call("GET", f"/deliveries/{sent['id']}")["state"] == "delivered", "the test is delivered")
    finally:
        desk.service.stop()
    assert receiver.verified(SECRET)["type"] == "webhook.test"


def test_what_was_being_sent_when_the_server_was_killed_is_sent_again(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    desk.service.collect()
    assert len(desk.service._claim()) == 1  # and then it is killed
    after = desk_of(desk.site, desk.site.services.settings)
    assert after.round() == 0
    desk.site.clock.pass_s(121)
    assert after.round() == 1
    assert after.deliveries()[0]["state"] == "delivered"


# --- builds -----------------------------------------------------------------------------------------------------------


def test_a_build_that_fails_is_told(desk: Desk, receiver: Receiver) -> None:
    site = desk.site
    desk.add(receiver)
    assert site.push().status_code == 201
    job = site.lease("onnxruntime-*").json()
    report = {"target": job["target"], "outcome": "failed", "reason": "the graph has a cycle"}
    url = f"/api/v1/jobs/{job['id']}/finish"
    answer = site.client.post(url, json={"lease": job["lease"], "report": report}, headers=site.as_("worker"))
    assert answer.is_success, answer.text
    desk.round()
    data = receiver.verified(SECRET)["data"]
    assert data["summary"] == "digits 1.0: onnxruntime-fp32 could not be built: the graph has a cycle"
    assert (data["model"], data["target"]) == ("digits", "onnxruntime-fp32")
