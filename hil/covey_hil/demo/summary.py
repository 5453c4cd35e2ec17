"""What the demo has to show for itself: gathered from the server's API and from what the load generator saw, decided by neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from covey_client.api import Client
from covey_hil.load.record import Record

BEFORE_S = 10.0  # the steady time before a swap that it is compared with
AROUND_S = (
    0.1,
    0.2,
)  # a swap's window: from 0.1 s before the candidate was loaded to 0.2 s after the first answer of the new build
AFTER_S = 8.0

Json = dict[str, Any]


def builds(client: Client, model: str, version: str | None = None) -> list[Json]:
    """One row per version and target: what came of it, with its figures, and the devices whose choice it was."""
    chosen: dict[str, list[str]] = {}
    for device in client.devices():
        for slot in client.device(device["id"])["models"]:
            if slot["model"] == model and slot.get("active"):
                chosen.setdefault(slot["active"]["digest"], []).append(device["id"])
    rows = []
    for summary in client.builds(model=model, version=version):
        build = client.build(summary["id"])
        report = build.get("report") or {}
        accuracy = report.get("accuracy") or {}
        rows.append(
            {
                "version": build["version"],
                "target": build["target"],
                "state": build["state"],
                "reason": report.get("reason") or build.get("waiting_for") or "",
                "size": build.get("size", 0),
                "accuracy": accuracy.get("build"),
                "source_accuracy": accuracy.get("source"),
                "samples": accuracy.get("samples"),
                "p50_ms": (report.get("latency") or {}).get("p50_ms"),
                "digest": build.get("digest"),
                "chosen_by": chosen.get(build.get("digest") or "", []),
            }
        )
    return rows


def measured_errors(rows: Sequence[Json]) -> dict[str, int]:
    """How many of the evaluation images each build misread when it was made, by digest."""
    return {
        row["digest"]: round((1 - row["accuracy"]) * row["samples"])
        for row in rows
        if row["digest"] and row["accuracy"] is not None
    }


def swaps(client: Client, device: str, record: Record, names: Mapping[str, str]) -> list[Json]:
    """Every change of the serving build on a device that callers could notice, with latency before, during and after it."""
    found: list[Json] = []
    serving: str | None = None
    warming_ms: dict[str, int] = {}
    for report in sorted(client.device_reports(device), key=lambda report: report["seq"]):
        state, build, assignment = report["state"], report["build"], report["assignment"]
        if state == "warming":
            warming_ms[assignment] = report["at_ms"]
        elif state == "probation" and serving != build:
            if serving is not None:
                switched: int = report["at_ms"]
                began: int = warming_ms.get(assignment, switched)
                found.append(_swap(device, serving, build, began, switched, record, names))
            serving = build
        elif state == "active":
            serving = build
    return found


def _swap(
    device: str, old: str, new: str, warming_ms: int, switched_ms: int, record: Record, names: Mapping[str, str]
) -> Json:
    start, end = warming_ms / 1000 - AROUND_S[0], switched_ms / 1000 + AROUND_S[1]
    before = record.quantiles(device, start - BEFORE_S, start)
    during = record.quantiles(device, start, end)
    after = record.quantiles(device, end, end + AFTER_S)
    return {
        "device": device,
        "from": names.get(old, old[:12]),
        "to": names.get(new, new[:12]),
        "at_ms": switched_ms,
        "requests_during": during.requests,
        **{
            f"p50_ms_{when}": value.p50_ms for when, value in (("before", before), ("during", during), ("after", after))
        },
        **{
            f"p99_ms_{when}": value.p99_ms for when, value in (("before", before), ("during", during), ("after", after))
        },
    }


def metric(text: str, name: str) -> float:
    """The sum over all labels of one metric in Prometheus' text format."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            total += float(line.rsplit(" ", 1)[1])
    return total
