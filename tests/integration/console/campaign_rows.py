"""Rows of campaigns: one that is done, one under way, one that was halted by its latency gate and rolled back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server import audit
from covey_server.campaigns import commands
from covey_server.core.document import parse
from covey_server.core.spec import parse_spec
from covey_server.db import tables as t
from tests.integration.console.fleet_rows import FleetRows

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


class CampaignRows:
    """On the devices and builds of `fleet`."""

    def __init__(self, fleet: FleetRows) -> None:
        self.fleet = fleet
        self.now = fleet.now

    def fill(self, session: Session) -> None:
        self.campaign(session, "digits-1.1", "1.1", "done")
        self.campaign(session, "digits-1.2", "1.2", "running")
        self.campaign(session, "digits-1.3", "1.3", "rolled_back")

    def campaign(self, session: Session, name: str, version: str, state: str) -> None:
        text = CAMPAIGN.format(name=name, version=version)
        actor = audit.Actor("admin", "admin", "api 127.0.0.1")
        row = commands.create(session, parse_spec(text), text, 7, parse(text).error, actor, self.now - 600_000)
        ended = state != "running"
        slow = state == "rolled_back"
        row.state, row.started_ms, row.stage_started_ms = state, self.now - 590_000, self.now - 60_000
        row.stage = 2 if state == "done" else 1 if state == "running" else 0
        row.finished_ms = self.now - 30_000 if ended else None
        row.waiting_for = (
            "" if ended else "line-a: 0 of 2 active; 1 in progress; errors has 31 of 50 requests; soak 10 s left"
        )
        latency = latency_of(slow)
        row.verdict = {"stage": "canary" if slow else "line-a", "gates": self.gates(ended, latency)}
        if slow:
            row.halted_ms = self.now - 80_000
            row.verdict["tripped"] = {**latency, "stage": "canary", "at_ms": self.now - 80_000}
        parts = list(session.scalars(select(t.CampaignDevice).where(t.CampaignDevice.campaign_id == row.id)))
        for part in parts:
            if part.state != "skipped":
                self.take_part(session, row, part, version)
        if slow:
            self.slow_canary(session, version, next(part for part in parts if part.device == "press-1"))
        for index, (kind, message) in enumerate(log_of(slow, latency["summary"])):
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

    def gates(self, ended: bool, latency: dict[str, Any]) -> list[dict[str, Any]]:
        """What each gate found. Of a campaign under way latency is weighed as evidence, and errors have too little of it."""
        return [
            {"gate": "install_failures", "kind": "threshold", "status": "passing", "summary": "0 of 2 devices failed to install it (limit 10% or 1)", "devices": 2, "failures": 0, "rate": 0.0, "threshold": {"max_rate": 0.1, "max_count": 1}},
            {"gate": "errors", "kind": "threshold", "status": "no_evidence" if not ended else "passing", "summary": "31 of 50 requests", "devices": 1, "requests": 31, "failed": 0, "rate": 0.0, "rate_before": 0.0, "threshold": {"max_rate": 0.01, "min_requests": 50}},
            latency if ended else {**latency, **self.weighed()},
        ]  # fmt: skip

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

    def take_part(self, session: Session, row: t.Campaign, part: t.CampaignDevice, version: str) -> None:
        """What became of the campaign's order on one of its devices."""
        state, stage = row.state, part.stage or 0
        previous = self.fleet.build_of(session, "1.0" if version == "1.1" else "1.1", part.device)
        if state == "done" or stage <= (row.stage if state == "running" else 0):
            part.assigned_ms = self.now - 580_000
        if state == "done" or (state == "running" and part.stage == 0):
            part.state, part.active_ms, part.previous_build_id = "active", self.now - 300_000, previous.id
        elif state == "running" and part.stage == 1:
            part.state, part.previous_build_id = ("assigned" if part.device == "press-2" else "failed"), previous.id
            if part.state == "failed":
                part.reason, part.detail = "load_failed", "the runtime could not read the model"
        elif state == "rolled_back" and part.stage == 0:
            part.state, part.restored_ms, part.previous_build_id = "rolled_back", self.now - 74_000, previous.id

    def slow_canary(self, session: Session, version: str, part: t.CampaignDevice) -> None:
        """What it measured, and that it went back."""
        build = session.get_one(t.Build, part.build_id)
        for step in range(8):
            self.fleet.window(session, "press-1", version, build, self.now - 200_000 + step * 12_000, 24.0)
        gone_ms, order = self.now - 74_000, "press-1-1.3"
        self.fleet.report(session, "press-1", version, build, "rolled_back", gone_ms, order, "rolled_back")


def latency_of(slow: bool) -> dict[str, Any]:
    """What the latency gate found."""
    return {
        "gate": "latency", "kind": "threshold", "status": "breached" if slow else "passing", "measure": "end_to_end", "quantile": 0.99, "devices": 1,
        "devices_slow": int(slow), "requests": 480, "requests_before": 2100, "before_ms": 4.1, "after_ms": 31.6 if slow else 3.9, "ratio": 7.7 if slow else 0.95,
        "summary": "p99 end_to_end 4.1 -> 31.6 ms (x7.70, limit x1.5 and 2 ms more; 1 of 1 devices slow, 480 requests)" if slow else "p99 end_to_end 4.1 -> 3.9 ms (x0.95, limit x1.5 and 2 ms more; 0 of 1 devices slow, 480 requests)",
        "threshold": {"max_ratio": 1.5, "min_increase_ms": 2, "min_requests": 100, "max_ms": None},
        "worst": [{"device": "press-1", "requests_before": 2100, "requests": 480, "before_ms": 4.1, "after_ms": 31.6 if slow else 3.9, "ratio": 7.7 if slow else 0.95, "slow": slow}],
    }  # fmt: skip


def log_of(slow: bool, latency: str) -> list[tuple[str, str]]:
    """The kinds and words of a campaign's log."""
    log = [
        ("started", "started by admin"),
        ("stage_started", "stage canary started"),
        ("stage_passed", "stage canary passed: 1 of 1 active"),
    ]
    if not slow:
        return [*log, ("stage_started", "stage line-a started")]
    return [
        *log,
        ("gate_breached", f"canary: latency: {latency}"),
        ("rolling_back", f"going back: canary: latency: {latency}"),
        ("rolled_back", "1 of 1 devices restored"),
    ]
