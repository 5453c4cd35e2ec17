"""Campaigns and metrics over the API: what is answered, to whom, and which problem documents say no."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session

from covey_contract.building import BuildReport, Latency, Outcome
from covey_contract.facts import Facts, RuntimeFact
from covey_hil.testing.rows import add_version
from covey_hil.testing.serving import served
from covey_profiles import load_profiles, match
from covey_server import tokens
from covey_server.app import create_app
from covey_server.bus import Bus
from covey_server.campaigns.choice import DEFAULT_TARGETS, targets_needed
from covey_server.db.engine import Database
from covey_server.db.tables import (
    Build,
    Device,
    Group,
    GroupMember,
    Reported,
)
from covey_server.people.roles import Role
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.services import Services
from covey_server.settings import Settings

NOW_MS = 1_800_000_000_000
RUNTIMES = (
    RuntimeFact(name="onnxruntime", version="1.31.1"),
    RuntimeFact(name="openvino", version="2026.4.1", devices=("CPU",)),
)
INTEL = Facts(architecture="x86_64", cpu_cores=4, memory_mb=8000, libc="glibc 2.36", runtimes=RUNTIMES, simulated=True)
ODD = Facts(architecture="s390x", simulated=True)
FILE = """\
name: digits-1.1
model: digits
version: "1.1"
objective: size
stages:
  - {name: canary, group: canary, soak: 15s}
  - {name: rest, percent: 100}
gates:
  latency: {max_ratio: 1.5, min_requests: 100}
"""


@dataclass
class Site:
    services: Services
    client: httpx.Client
    secrets: dict[str, str]

    def ask(
        self, method: str, path: str, body: str | None = None, *, role: str = "operator", kind: str = "yaml"
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.secrets[role]}", "Content-Type": f"application/{kind}"}
        return self.client.request(method, path, content=body, headers=headers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = Database(f"sqlite:///{tmp_path / 'covey.db'}")
    database.migrate()
    keys = SigningKeys.load_or_create(tmp_path / "keys")
    services = Services(Settings(data=tmp_path), lambda: NOW_MS, database, Bus(), BlobStore(tmp_path / "blobs"), keys)
    roles: tuple[Role, ...] = ("viewer", "operator", "approver", "worker", "admin")
    with database.session() as session:
        secrets: dict[str, str] = {role: tokens.create(session, f"a-{role}", role, NOW_MS, None)[1] for role in roles}
        populate(session)
    with served(create_app(services)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Site(services, client, secrets)
    database.close()


def populate(session: Session) -> None:
    """Three devices (one canary, one that nothing fits), and version 1.1 in three targets, one of them refused."""
    session.add(Group(name="canary", description="", created_ms=NOW_MS))
    version = add_version(session, "1.1", now_ms=NOW_MS)
    latency = Latency(p50_ms=1.0, p99_ms=2.0, load_ms=9.0, first_ms=3.0, peak_rss_mb=40.0, machine="a test")
    for number, (target, size, state) in enumerate(
        [("onnxruntime-fp32", 3000, "built"), ("openvino-fp16", 2000, "built"), ("onnxruntime-int8", 1000, "refused")]
    ):
        report = BuildReport(
            target=target,
            outcome=Outcome(state),
            size=size,
            latency=latency,
            reason="drops 0.04, budget 0.01" if state == "refused" else "",
        )
        session.add(
            Build(
                version_id=version.id,
                target=target,
                state=state,
                digest=f"{number}" * 64 if state == "built" else None,
                size=size,
                report=msgspec.to_builtins(report),
                created_ms=NOW_MS,
            )
        )
    for name, facts in (("press-1", INTEL), ("press-2", INTEL), ("odd-1", ODD)):
        found = match(facts, load_profiles())
        session.add(
            Device(
                id=name,
                profile=found.profile.id if found.profile else None,
                profile_reason=found.reason,
                simulated=True,
                facts=msgspec.to_builtins(facts),
                facts_digest=facts.digest(),
                labels={},
                enrolled_ms=NOW_MS,
                online=True,
            )
        )
    session.flush()
    session.add(GroupMember(group="canary", device="press-1"))


def test_a_plan_says_who_gets_what_and_why_and_moves_nothing(site: Site) -> None:
    answer = site.ask("POST", "/api/v1/campaigns/plan", FILE)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert plan["devices"] == 2
    assert [(stage["name"], stage["who"]) for stage in plan["stages"]] == [
        ("canary", "group canary"),
        ("rest", "up to 100 %"),
    ]
    first = plan["stages"][0]["devices"][0]
    assert (first["device"], first["target"]) == ("press-1", "openvino-fp16")
    assert "smallest: 2,000 bytes" in first["why"]["chosen"]["reason"]
    assert {each["target"]: each["reason"] for each in first["why"]["lost"]} == {
        "onnxruntime-fp32": "larger: 3,000 bytes > 2,000 bytes",
        "onnxruntime-int8": "refused: drops 0.04, budget 0.01",
    }
    assert [each["device"] for each in plan["left_out"]] == ["odd-1"]
    assert plan["left_out"][0]["reason"].startswith("no firmware profile: ")
    assert plan["warnings"]
    assert site.ask("GET", "/api/v1/campaigns").json() == {"items": [], "next": None}


def test_a_campaign_from_making_to_its_end(site: Site) -> None:
    made = site.ask("POST", "/api/v1/campaigns", FILE)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/api/v1/campaigns/digits-1.1"
    assert (made.json()["state"], made.json()["waiting_for"]) == ("planned", "to be started")
    assert isinstance(made.json()["seed"], int)
    started = site.ask("POST", "/api/v1/campaigns/digits-1.1/start").json()
    assert started["state"] == "running"
    assert site.ask("POST", "/api/v1/campaigns/digits-1.1/start").json()["state"] == "running"
    shown = site.ask("GET", "/api/v1/campaigns/digits-1.1", role="viewer").json()
    assert [(stage["name"], stage["state"], stage["devices"]) for stage in shown["stages"]] == [
        ("canary", "waiting", 1),
        ("rest", "waiting", 1),
    ]
    assert shown["verdict"] is None
    devices = site.ask("GET", "/api/v1/campaigns/digits-1.1/devices?limit=2").json()
    assert [each["device"] for each in devices["items"]] == ["odd-1", "press-1"]
    more = site.ask("GET", f"/api/v1/campaigns/digits-1.1/devices?after={devices['next']}").json()
    assert [each["device"] for each in more["items"]] == ["press-2"]
    assert more["next"] is None
    assert site.ask("POST", "/api/v1/campaigns/digits-1.1/abort").json()["state"] == "aborted"
    events = site.ask("GET", "/api/v1/campaigns/digits-1.1/events").json()["items"]
    assert [(event["kind"], event["who"]) for event in events] == [
        ("created", "a-operator"),
        ("started", "a-operator"),
        ("aborted", "a-operator"),
    ]
    listed = site.ask("GET", "/api/v1/campaigns").json()["items"]
    assert [(each["name"], each["state"], each["devices"]) for each in listed] == [("digits-1.1", "aborted", 2)]


def test_approval_clones_and_stages(site: Site) -> None:
    def said(path: str, role: str = "operator", body: str | None = None) -> tuple[int, Any]:
        kind = "json" if body is not None else "yaml"
        answer = site.ask("POST", f"/api/v1/campaigns/digits-1.1/{path}", body, role=role, kind=kind)
        return answer.status_code, answer.json()

    file = FILE + "approval: true\nconflict: queue\n"
    assert site.ask("POST", "/api/v1/campaigns?start=true", file).json()["state"] == "queued"
    assert said("approve")[0] == 403
    assert said("approve", "viewer")[0] == 403
    status, view = said("approve", "approver")
    assert (status, view["approval"]) == (200, "a-approver")
    assert said("approve", "approver")[0] == 200
    assert said("approve?stage=rest", "approver")[1]["detail"] == "stage rest needs no approval"
    assert said("rollback?stage=moon")[0] == 422
    assert said("pause?stage=rest")[0] == 422
    assert said("retry", "approver")[0] == 403
    assert said("clone", body='{"name": "b", "version": "9.9"}')[1]["code"] == "bad_campaign_file"
    assert said("clone", body='{"name": "b", "nonsense": 1}')[0] == 422
    status, view = said("clone", body='{"name": "b"}')
    assert (status, view["name"], view["state"], view["conflict"]) == (201, "b", "planned", "queue")
    assert said("clone", body='{"name": "b"}')[1]["code"] == "name_taken"
    devices = "/api/v1/campaigns/digits-1.1/devices"
    assert len(site.ask("GET", f"{devices}?stage=canary").json()["items"]) == 1
    assert site.ask("GET", f"{devices}?stage=moon").status_code == 404
    assert site.ask("GET", f"{devices}?drifted=true").json()["items"] == []
    own = FILE.replace("digits-1.1", "own") + "approval: true\n"
    assert site.ask("POST", "/api/v1/campaigns", own, role="admin").status_code == 201
    assert site.ask("POST", "/api/v1/campaigns/own/approve", role="admin").json()["code"] == "own_campaign"


def test_json_is_taken_as_well(site: Site) -> None:
    body = {"name": "a", "model": "digits", "version": "1.1", "stages": [{"name": "all", "percent": 100}]}
    made = site.ask("POST", "/api/v1/campaigns?start=true", json.dumps(body), kind="json")
    assert made.status_code == 201, made.text
    assert made.json()["state"] == "running"


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("soak: 15s", "soak: 15x", 6, "stages[0].soak"),
        ('"1.1"', "1.1", 3, "version"),
        ('"1.1"', '"9.9"', 3, "version"),
        ("group: canary", "group: nobody", 6, "stages[0].group"),
        ("objective: size", "target: {devices: [press-1, press-9]}", 4, "target.devices[1]"),
        ("gates:", "gate:", 8, "gate"),
        ("stages:", "stages: [", 6, None),
    ],
)
def test_a_bad_file_is_a_problem_that_names_line_and_field(
    site: Site, old: str, new: str, line: int, field: str | None
) -> None:
    assert old in FILE
    for path in ("/api/v1/campaigns/plan", "/api/v1/campaigns"):
        answer = site.ask("POST", path, FILE.replace(old, new))
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert (problem["code"], problem["line"], problem.get("field")) == ("bad_campaign_file", line, field)
        assert f"line {line}: " in problem["detail"]


def test_other_ways_to_be_refused(site: Site) -> None:
    def status(method: str, path: str, body: str | None = None, role: str = "operator") -> tuple[int, str]:
        answer = site.ask(method, f"/api/v1/campaigns{path}", body, role=role)
        return answer.status_code, answer.json().get("code", "")

    assert status("POST", "/plan", "#" * 70_000) == (413, "too_large")
    assert status("POST", "/plan", FILE, role="viewer") == (403, "forbidden")
    assert status("GET", "/nobody") == (404, "not_found")
    assert status("POST", "/nobody/start") == (404, "not_found")
    assert status("GET", "", role="worker") == (403, "forbidden")
    assert status("POST", "", FILE)[0] == 201
    assert status("POST", "", FILE) == (409, "name_taken")
    assert status("POST", "/digits-1.1/resume") == (409, "wrong_state")
    assert status("POST", "/digits-1.1/explode")[0] == 422
    assert status("POST", "?start=true", FILE.replace("name: digits-1.1", "name: second"))[0] == 201
    assert status("POST", "/digits-1.1/start") == (409, "campaigns_overlap")
    nobody = FILE.replace("name: digits-1.1", "name: third").replace("objective: size", "target: {devices: [odd-1]}")
    assert status("POST", "", nobody) == (422, "nothing_to_do")
    assert site.client.get("/api/v1/campaigns").status_code == 401


def test_a_campaign_that_cannot_start_is_not_left_behind(site: Site) -> None:
    assert site.ask("POST", "/api/v1/campaigns?start=true", FILE).status_code == 201
    second = FILE.replace("name: digits-1.1", "name: second")
    assert site.ask("POST", "/api/v1/campaigns?start=true", second).status_code == 409
    assert site.ask("GET", "/api/v1/campaigns/second").status_code == 404


def test_the_openapi_document_holds_the_grammar(site: Site) -> None:
    document = site.client.get("/api/v1/openapi.json").json()
    body = document["paths"]["/api/v1/campaigns"]["post"]["requestBody"]["content"]["application/yaml"]["schema"]
    assert set(body["required"]) == {"name", "model", "version", "stages"}
    assert body["properties"]["stages"]["items"]["properties"]["soak"]["examples"] == ["15s", "10m", "2h", "7d"]
    assert "$ref" not in json.dumps(body)


def test_why_a_device_gets_its_build(site: Site) -> None:
    for path in ("press-1/why?model=digits", "press-1/why?model=digits&version=1.1"):
        why = site.ask("GET", f"/api/v1/devices/{path}").json()
        assert (why["version"], why["profile"], why["chosen"]["target"]) == ("1.1", "generic-x86-64", "openvino-fp16")
        assert "onnxruntime-fp32" in {each["target"] for each in why["lost"]}
    odd = site.ask("GET", "/api/v1/devices/odd-1/why?model=digits").json()
    assert odd["chosen"] is None
    assert odd["reason"].startswith("no firmware profile: ")
    assert site.ask("GET", "/api/v1/devices/press-1/why?model=nothing").status_code == 404


def test_targets_needed_are_those_of_the_enrolled_devices(site: Site) -> None:
    with site.services.database.session() as session:
        needed = targets_needed(session)
        assert {"onnxruntime-int8", "openvino-int8"} <= set(needed)
        for device in session.query(Device):
            device.revoked_ms = NOW_MS
        session.flush()
        assert targets_needed(session) == list(DEFAULT_TARGETS)


def test_metrics_are_prometheus_text_with_help(site: Site) -> None:
    with site.services.database.session() as session:
        session.add(Reported(device="press-1", model="digits", active="0" * 64, updated_ms=NOW_MS))
    assert site.ask("POST", "/api/v1/campaigns?start=true", FILE).status_code == 201
    answer = site.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert all(family.documentation for family in families.values())

    def value(family: str, sample: str, **labels: str) -> float:
        return next(
            each.value
            for each in families[family].samples
            if each.name == sample and labels.items() <= each.labels.items()
        )

    labels = {"model": "digits", "version": "1.1"}
    assert value("covey_campaigns", "covey_campaigns", state="running") == 1
    assert value("covey_builds", "covey_builds", target="onnxruntime-int8", state="refused") == 1
    assert value("covey_devices", "covey_devices", profile="none", simulated="true") == 1
    assert value("covey_devices_running", "covey_devices_running", **labels) == 1
    assert "process_resident_memory_bytes" in families
