"""A server's data folder filled with a small fleet in the middle of its life, the real application on a port, and Chromium."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.histogram import Recorder
from covey_server import audit
from covey_server.api import people, webhooks
from covey_server.app import build_services, create_app
from covey_server.campaigns import commands
from covey_server.core.document import parse
from covey_server.core.spec import parse_spec
from covey_server.db import tables as t
from covey_server.people.sessions import Holder, create_login_code
from covey_server.services import Services
from covey_server.settings import Settings

MODEL = "digits"
TARGETS = (
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "openvino-fp16",
    "openvino-int8",
    "tensorrt-fp16-sm87",
    "tflite-int8",
)
DEVICES = {
    "press-1": ("generic-x86-64", "Industrial PC 9100", False),
    "press-2": ("generic-x86-64", "Industrial PC 9100", False),
    "press-3": ("generic-x86-64", "Industrial PC 9100", False),
    "gate-1": ("raspberry-pi-5", "Raspberry Pi 5 Model B Rev 1.0", True),
    "gate-2": ("raspberry-pi-5", "Raspberry Pi 5 Model B Rev 1.0", True),
    "crane-1": ("jetson-orin-nano", "NVIDIA Jetson Orin Nano", True),
}
FITTING = {"generic-x86-64": "openvino-int8", "raspberry-pi-5": "tflite-int8", "jetson-orin-nano": "onnxruntime-int8"}
CAMPAIGN = """\
name: {name}
model: digits
version: "{version}"
stages:
  - {{name: canary, group: canary, soak: 15s}}
  - {{name: line-a, group: line-a, soak: 10s}}
  - {{name: rest, percent: 100}}
gates:
  install_failures: {{max_rate: 0.1, max_count: 1}}
  errors: {{max_rate: 0.01, min_requests: 50}}
  latency: {{quantile: 0.99, max_ratio: 1.5, min_increase_ms: 2, min_requests: 100}}
on_breach: rollback
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Seed:
    """Rows as the server itself would have written them."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.now = services.clock()
        self.seqs: dict[str, int] = {}

    def fill(self) -> None:
        with self.services.database.session() as session:
            self.devices(session)
            self.models(session)
        with self.services.database.session() as session:
            self.serve(session, "1.0", self.now - 7_200_000, 6.0)
            self.serve(session, "1.1", self.now - 1_500_000, 3.4)
        with self.services.database.session() as session:
            self.campaign(session, "digits-1.1", "1.1", "done")
            self.campaign(session, "digits-1.2", "1.2", "running")
            self.campaign(session, "digits-1.3", "1.3", "rolled_back")
        self.people()

    def devices(self, session: Session) -> None:
        for index, (name, (profile, board, simulated)) in enumerate(DEVICES.items()):
            facts = {
                "architecture": "x86_64" if "x86" in profile else "aarch64",
                "board": board,
                "cpu_model": "a processor",
                "cpu_cores": 4,
                "memory_mb": 8000,
                "os": "Debian GNU/Linux 12 (bookworm)",
                "runtimes": [{"name": "onnxruntime", "version": "1.20.1"}, {"name": "openvino", "version": "2025.4"}],
                "simulated": simulated,
            }
            online = name != "gate-2"
            session.add(
                t.Device(
                    id=name,
                    profile=profile,
                    profile_reason=f"board {board!r}; architecture x86_64",
                    simulated=simulated,
                    facts=facts,
                    facts_digest=digest(name),
                    labels={"line": "a" if index < 3 else "b", "site": "north"},
                    enrolled_ms=self.now - 86_400_000 * (index + 1),
                    last_seen_ms=self.now - (2_000 if online else 900_000),
                    online=online,
                    boot_id="b1",
                    agent_version="0.1.0",
                    counter=2,
                    resources={
                        "cpu_percent": 3.1,
                        "control_rss_mb": 41.5,
                        "gateway_rss_mb": 62.0,
                        "runners_rss_mb": 130.2,
                        "memory_available_mb": 5120.0,
                        "storage_free_mb": 20480.0,
                    }
                    | (
                        {"capture": {"share": 0.01, "limit_mb": 200.0, "samples": 12, "held_mb": 1.5}}
                        if not index
                        else {}
                    ),
                )
            )
        session.add(t.Group(name="canary", description="first to get anything", selector=None, created_ms=self.now))
        session.add(t.Group(name="line-a", description="", selector={"labels.line": "a"}, created_ms=self.now))
        session.flush()
        session.add(t.GroupMember(group="canary", device="press-1"))

    def models(self, session: Session) -> None:
        session.add(t.Model(name=MODEL, description="Reads handwritten digits.", created_ms=self.now - 90_000_000))
        session.add(t.Blob(sha256=digest("source"), size=98_000, created_ms=self.now))
        session.flush()
        for index, version in enumerate(("1.0", "1.1", "1.2", "1.3")):
            row = t.Version(
                model=MODEL,
                name=version,
                source_blob=digest("source"),
                source_filename="digits.onnx",
                budget=0.01,
                info={},
                created_ms=self.now - (5 - index) * 7_200_000,
                created_by="admin",
            )
            session.add(row)
            session.flush()
            for target in TARGETS:
                session.add(self.build(row, target))

    def build(self, version: t.Version, target: str) -> t.Build:
        state, reason, waiting = "built", "", ""
        if target.startswith("tensorrt"):
            state, waiting = "queued", "a builder for tensorrt-fp16-sm87 (none has come)"
        elif target == "onnxruntime-int8" and version.name == "1.2":
            state, reason = "refused", "accuracy falls by 0.0134 (0.9730 to 0.9596), budget 0.0100"
        elif target == "tflite-int8" and version.name == "1.3":
            state = "building"
        report: dict[str, Any] | None = None
        if state in ("built", "refused"):
            drop = 0.0134 if state == "refused" else 0.0 if "fp" in target else 0.0022
            report = {
                "target": target,
                "outcome": state,
                "reason": reason,
                "size": 97_000 if "fp32" in target else 31_000,
                "recipe": "static int8, per channel" if "int8" in target else "as it is",
                "accuracy": {"metric": "top1", "source": 0.973, "build": 0.973 - drop, "samples": 450, "budget": 0.01},
                "latency": {
                    "p50_ms": 0.31,
                    "p99_ms": 0.52,
                    "load_ms": 21.0,
                    "first_ms": 1.4,
                    "peak_rss_mb": 88.0,
                    "machine": "a processor, 2 cores",
                },
                "toolchain": {"openvino": "2025.4.0", "nncf": "2.19.0"},
                "tries": [{"recipe": "static int8, per channel", "outcome": state, "detail": reason}],
            }
        return t.Build(
            version_id=version.id,
            target=target,
            state=state,
            waiting_for=waiting,
            digest=digest(f"{version.name}/{target}") if state == "built" else None,
            size=report["size"] if report and state == "built" else 0,
            report=report,
            created_ms=self.now,
            finished_ms=self.now if report else None,
        )

    def build_of(self, session: Session, version: str, device: str) -> t.Build:
        target = FITTING[DEVICES[device][0]]
        query = select(t.Build).join(t.Version, t.Version.id == t.Build.version_id)
        found = session.scalar(query.where(t.Version.name == version, t.Build.target == target))
        if found is None or found.digest is None:
            found = session.scalars(query.where(t.Version.name == version, t.Build.target == "onnxruntime-fp32")).one()
        return found

    def serve(self, session: Session, version: str, since_ms: int, base_ms: float, until_ms: int | None = None) -> None:
        """Every device gets the version at `since_ms` and serves it up to now (or until then)."""
        for name in DEVICES:
            if name == "gate-2" and version != "1.0":
                continue
            build = self.build_of(session, version, name)
            assignment = f"{name}-{version}"
            why = {
                "profile": DEVICES[name][0],
                "objective": "rank",
                "chosen": {
                    "target": build.target,
                    "build": build.id,
                    "reason": f"ranked highest for {DEVICES[name][0]}",
                },
                "reason": f"ranked highest for {DEVICES[name][0]}",
                "lost": [
                    {
                        "target": "onnxruntime-fp32",
                        "reason": f"ranked lower: {build.target} before onnxruntime-fp32",
                    },
                    {
                        "target": "tensorrt-fp16-sm87",
                        "reason": "not built yet: a builder for tensorrt-fp16-sm87 (none has come)",
                    },
                ],
            }
            session.add(
                t.AssignmentRow(
                    id=assignment, device=name, counter=1 if version == "1.0" else 2, model=MODEL, version_id=build.version_id,
                    build_id=build.id, kind="rollout", campaign_id=None, why=why, issued_ms=since_ms, expires_ms=self.now + 10**9,
                    sent_ms=since_ms, state="active", updated_ms=since_ms,
                )
            )  # fmt: skip
            session.flush()
            session.merge(t.Desired(device=name, model=MODEL, assignment=assignment))
            held = session.get(t.Reported, (name, MODEL))
            previous = held.active if held is not None else None
            session.merge(
                t.Reported(
                    device=name,
                    model=MODEL,
                    active=build.digest,
                    previous=previous,
                    candidate=None,
                    assignment=assignment,
                    state="active",
                    reason="none",
                    detail="",
                    updated_ms=since_ms,
                )
            )
            for step, state in enumerate(
                ("assigned", "fetching", "verifying", "staged", "warming", "probation", "active")
            ):
                self.report(session, name, version, build, state, since_ms + step * 1000, assignment)
            end = since_ms + 60_000
            windows = 0
            while end < (until_ms or self.now) and windows < 40:
                self.window(session, name, version, build, end, base_ms)
                end += 30_000
                windows += 1
            if version == "1.1" or name == "gate-2":
                self.window(session, name, version, build, self.now - 4_000, base_ms)

    def report(
        self,
        session: Session,
        device: str,
        version: str,
        build: t.Build,
        state: str,
        at_ms: int,
        assignment: str,
        reason: str = "none",
        detail: str = "",
    ) -> None:
        session.add(
            t.ReportRow(
                device=device,
                seq=self.seq(device),
                at_ms=at_ms,
                received_ms=at_ms,
                assignment=assignment,
                model=MODEL,
                version=version,
                build=build.digest or "",
                state=state,
                reason=reason,
                detail=detail,
            )
        )

    def window(
        self, session: Session, device: str, version: str, build: t.Build, end_ms: int, base_ms: float, failed: int = 0
    ) -> None:
        recorder = Recorder()
        for index in range(60):
            recorder.record(
                base_ms / 1000 * (1 + ((index * 37 + end_ms // 1000) % 23) / 40 + (1.2 if index % 31 == 0 else 0))
            )
        session.add(
            t.TelemetryRow(
                device=device, seq=self.seq(device), part=0, start_ms=end_ms - 10_000, end_ms=end_ms, received_ms=end_ms, model=MODEL, version=version,
                build=build.digest or "", probation=False, ok=60 - failed, failed=failed, fallbacks=0, errors={}, histograms={"end_to_end": msgspec.to_builtins(recorder.snapshot()), "batches": {"1": 10, "4": 10}},
            )
        )  # fmt: skip

    def seq(self, device: str) -> int:
        self.seqs[device] = self.seqs.get(device, 0) + 1
        return self.seqs[device]

    def weighed(self) -> dict[str, Any]:
        """What an e-process adds to the figures of a latency gate, with its course over the last ten minutes."""
        trace = [
            [self.now - 600_000 + step * 50_000, round(-0.3 + step * 0.06, 3), 1.03 + step * 0.001, 0.99, 1.08]
            for step in range(12)
        ]
        return {
            "kind": "e_process",
            "summary": "p99 end_to_end +4.1 % (95 % CS −1.0 % … +8.0 %) on 12 against 40; evidence 2.3 of 100",
            "devices": 12, "controls": 40, "unjudged": 0, "by_site": False, "lost": {}, "missing": [], "margin": 1.02,
            "evidence": {"e": 2.29, "log10_e": 0.36, "boundary": 100.0, "alpha": 0.01, "why": "devices as units"},
            "estimate": 1.041, "interval": [0.99, 1.08], "confidence": 0.95, "trace": trace,
            "kinds": {
                "generic-x86-64": {"canaries": 8, "controls": 30, "estimate": 1.05, "log10_e": 0.4},
                "raspberry-pi-5": {"canaries": 4, "controls": 10, "estimate": 1.01, "log10_e": -0.1},
            },
        }  # fmt: skip

    def people(self) -> None:
        """Somebody who was invited, and a webhook with a delivery that waits."""
        actor = audit.Actor("admin", "admin", "api 127.0.0.1")
        people.add_person(self.services, people.NewPerson(name="anna", role="approver"), actor)
        hook = webhooks.NewWebhook(name="chat", url="https://hooks.factory.example/covey", events=["campaign.halted"])
        webhooks.add_webhook(self.services, hook, actor)
        webhooks.test_webhook(self.services, "chat", actor)

    def campaign(self, session: Session, name: str, version: str, state: str) -> None:
        text = CAMPAIGN.format(name=name, version=version)
        actor = audit.Actor("admin", "admin", "api 127.0.0.1")
        row = commands.create(session, parse_spec(text), text, 7, parse(text).error, actor, self.now - 600_000)
        ended = state != "running"
        row.state, row.started_ms, row.stage_started_ms = state, self.now - 590_000, self.now - 60_000
        row.stage = 2 if state == "done" else 1 if state == "running" else 0
        row.finished_ms = self.now - 30_000 if ended else None
        row.waiting_for = (
            "" if ended else "line-a: 0 of 2 active; 1 in progress; errors has 31 of 50 requests; soak 10 s left"
        )
        slow = state == "rolled_back"
        latency = {
            "gate": "latency", "kind": "threshold", "status": "breached" if slow else "passing", "measure": "end_to_end", "quantile": 0.99, "devices": 1,
            "devices_slow": int(slow), "requests": 480, "requests_before": 2100, "before_ms": 4.1, "after_ms": 31.6 if slow else 3.9, "ratio": 7.7 if slow else 0.95,
            "summary": "p99 end_to_end 4.1 -> 31.6 ms (x7.70, limit x1.5 and 2 ms more; 1 of 1 devices slow, 480 requests)" if slow else "p99 end_to_end 4.1 -> 3.9 ms (x0.95, limit x1.5 and 2 ms more; 0 of 1 devices slow, 480 requests)",
            "threshold": {"max_ratio": 1.5, "min_increase_ms": 2, "min_requests": 100, "max_ms": None},
            "worst": [{"device": "press-1", "requests_before": 2100, "requests": 480, "before_ms": 4.1, "after_ms": 31.6 if slow else 3.9, "ratio": 7.7 if slow else 0.95, "slow": slow}],
        }  # fmt: skip
        gates = [
            {"gate": "install_failures", "kind": "threshold", "status": "passing", "summary": "0 of 2 devices failed to install it (limit 10% or 1)", "devices": 2, "failures": 0, "rate": 0.0, "threshold": {"max_rate": 0.1, "max_count": 1}},
            {"gate": "errors", "kind": "threshold", "status": "no_evidence" if not ended else "passing", "summary": "31 of 50 requests", "devices": 1, "requests": 31, "failed": 0, "rate": 0.0, "rate_before": 0.0, "threshold": {"max_rate": 0.01, "min_requests": 50}},
            latency,
        ]  # fmt: skip
        if not ended:
            gates[2] = {**latency, **self.weighed()}
        row.verdict = {"stage": "canary" if slow else "line-a", "gates": gates}
        if slow:
            row.halted_ms = self.now - 80_000
            row.verdict["tripped"] = {**latency, "stage": "canary", "at_ms": self.now - 80_000}
        parts = list(session.scalars(select(t.CampaignDevice).where(t.CampaignDevice.campaign_id == row.id)))
        for part in parts:
            if part.state == "skipped":
                continue
            previous = self.build_of(session, "1.0" if version == "1.1" else "1.1", part.device)
            if state == "done" or (part.stage or 0) <= (row.stage if state == "running" else 0):
                part.assigned_ms = self.now - 580_000
            if state == "done" or (state == "running" and part.stage == 0):
                part.state, part.active_ms, part.previous_build_id = "active", self.now - 300_000, previous.id
            elif state == "running" and part.stage == 1:
                part.state, part.previous_build_id = ("assigned" if part.device == "press-2" else "failed"), previous.id
                if part.state == "failed":
                    part.reason, part.detail = "load_failed", "the runtime could not read the model"
            elif slow and part.stage == 0:
                part.state, part.restored_ms, part.previous_build_id = "rolled_back", self.now - 74_000, previous.id
        if slow:
            first = next(part for part in parts if part.device == "press-1")
            build = session.get_one(t.Build, first.build_id)
            for step in range(8):
                self.window(session, "press-1", version, build, self.now - 200_000 + step * 12_000, 24.0)
            self.report(
                session,
                "press-1",
                version,
                build,
                "rolled_back",
                self.now - 74_000,
                "press-1-1.3",
                "rolled_back",
                "",
            )
        log = [
            ("started", "started by admin"),
            ("stage_started", "stage canary started"),
            ("stage_passed", "stage canary passed: 1 of 1 active"),
        ]
        log += (
            [
                ("gate_breached", f"canary: latency: {latency['summary']}"),
                ("rolling_back", f"going back: canary: latency: {latency['summary']}"),
                ("rolled_back", "1 of 1 devices restored"),
            ]
            if slow
            else [("stage_started", "stage line-a started")]
        )
        for index, (kind, message) in enumerate(log):
            session.add(
                t.CampaignEvent(
                    campaign_id=row.id,
                    at_ms=self.now - 590_000 + index * 80_000,
                    kind=kind,
                    who="campaign engine",
                    message=message,
                    detail={},
                )
            )


@dataclass
class Console:
    """A running server with its seed."""

    services: Services
    seed: Seed
    url: str
    token: str

    def change(self, work: Callable[[Session], None], topic: str, key: str = "") -> None:
        with self.services.database.session() as session:
            work(session)
        self.services.bus.publish(topic, key)

    def code(self) -> str:
        with self.services.database.session() as session:
            admin = session.scalars(select(t.ApiToken.id).where(t.ApiToken.name == "admin")).one()
            return create_login_code(session, Holder(token_id=admin), self.services.clock(), 60).code


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    services = build_services(Settings(data=tmp_path_factory.mktemp("data"), local_worker=False))
    seed = Seed(services)
    seed.fill()
    # The background parts would judge and move what the seed has laid out; these tests are of the pages.
    config = uvicorn.Config(create_app(services), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        thread.join(0.02)
    token = (services.settings.data / "admin-token").read_text().strip()
    yield Console(services, seed, f"http://127.0.0.1:{listener.getsockname()[1]}", token)
    server.should_exit = True
    thread.join(15)
    listener.close()
    services.database.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    switches = (
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    )
    path = next((one for one in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(one).exists()), None)
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(switches))
        yield browser
        browser.close()


class Visitor:
    """A browser window that is logged in, and everything that its console complained of."""

    def __init__(self, console: Console, context: BrowserContext) -> None:
        self.console = console
        self.context = context
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(15_000)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def enter(self) -> Page:
        self.page.goto(f"{self.console.url}/login?code={self.console.code()}")
        self.page.wait_for_url(f"{self.console.url}/")
        return self.page

    def go(self, where: str) -> Page:
        self.page.goto(self.console.url + where)
        return self.page


@pytest.fixture
def visitor(console: Console, chromium: Browser) -> Iterator[Visitor]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", timezone_id="Europe/Berlin")
    guest = Visitor(console, context)
    guest.enter()
    yield guest
    context.close()
    assert guest.complaints == []
