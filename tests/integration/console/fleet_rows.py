"""Rows of a small fleet in the middle of its life, as the server itself would have written them."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.histogram import Recorder
from covey_server.db import tables as t

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


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FleetRows:
    """Devices, a model's versions and what has served where. `now`: Unix time in ms."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.seqs: dict[str, int] = {}

    def fill(self, session: Session) -> None:
        self.devices(session)
        self.models(session)

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
            session.add(
                t.AssignmentRow(
                    id=assignment, device=name, counter=1 if version == "1.0" else 2, model=MODEL, version_id=build.version_id,
                    build_id=build.id, kind="rollout", campaign_id=None, why=why_of(name, build), issued_ms=since_ms, expires_ms=self.now + 10**9,
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


def why_of(device: str, build: t.Build) -> dict[str, Any]:
    """Why the device got this build."""
    profile = DEVICES[device][0]
    ranked = f"ranked highest for {profile}"
    return {
        "profile": profile,
        "objective": "rank",
        "chosen": {"target": build.target, "build": build.id, "reason": ranked},
        "reason": ranked,
        "lost": [
            {"target": "onnxruntime-fp32", "reason": f"ranked lower: {build.target} before onnxruntime-fp32"},
            {
                "target": "tensorrt-fp16-sm87",
                "reason": "not built yet: a builder for tensorrt-fp16-sm87 (none has come)",
            },
        ],
    }
