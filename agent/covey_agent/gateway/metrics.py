"""`GET /metrics`: what this device's models do, for a Prometheus on the device or in its plant.

Source of the format: Prometheus' "Text-based format", version 0.0.4. Counters begin anew with the gateway, as counters may.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from covey_agent.gateway.activity import Activity
from covey_agent.gateway.locks import Locks
from covey_agent.gateway.models import Models
from covey_agent.gateway.stats import DURATION_BOUNDS_S

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    suffix: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    name: str
    kind: str
    help: str
    samples: list[Sample]


def families(models: Models, activity: Activity, locks: Locks) -> Iterator[Family]:
    requests = Family("covey_inference_requests_total", "counter", "Requests by what their caller got.", [])
    fallbacks = Family(
        "covey_inference_fallbacks_total",
        "counter",
        "Requests that a build in probation failed and the one before answered.",
        [],
    )
    duration = Family("covey_inference_duration_seconds", "histogram", "From a request's arrival to its answer.", [])
    compute = Family("covey_inference_compute_seconds_total", "counter", "Time spent computing in runners.", [])
    serving = Family("covey_model_serving", "gauge", "1 while the build that should serve does.", [])
    probation = Family(
        "covey_model_in_probation", "gauge", "1 while the build that serves may still be taken back.", []
    )
    queue = Family("covey_model_queue_length", "gauge", "Requests that wait for a runner.", [])
    memory = Family("covey_runner_memory_bytes", "gauge", "Resident memory of the process that holds a build.", [])
    for model in models.all():
        for stats in model.statistics.all():
            manifest = stats.manifest
            labels = {
                "model": model.name,
                "version": manifest.version,
                "target": manifest.target,
                "build": stats.build[:12],
            }
            totals = stats.totals
            requests.samples.append(Sample("", {**labels, "outcome": "ok"}, totals.ok))
            requests.samples.extend(
                Sample("", {**labels, "outcome": code}, count) for code, count in sorted(totals.errors.items())
            )
            fallbacks.samples.append(Sample("", labels, totals.fallbacks))
            duration.samples.extend(_histogram(labels, totals.durations, totals.end_to_end_s))
            compute.samples.append(Sample("", labels, totals.compute_s))
        told = model.status()
        serving.samples.append(Sample("", {"model": model.name}, float(model.is_serving)))
        probation.samples.append(Sample("", {"model": model.name}, float(told.in_probation)))
        queue.samples.append(Sample("", {"model": model.name}, model.waiting))
        memory.samples.extend(
            Sample("", {"model": model.name, "build": one.build[:12], "state": one.state}, one.rss_mb * 1e6)
            for one in told.runners
        )
    yield from (requests, fallbacks, duration, compute, serving, probation, queue, memory)
    yield Family(
        "covey_device_idle_seconds", "gauge", "Since the last inference request.", [Sample("", {}, activity.idle_s)]
    )
    yield Family(
        "covey_device_locks", "gauge", "Applications that hold the device's lock.", [Sample("", {}, len(locks.held()))]
    )
    yield Family(
        "covey_gateway_memory_bytes", "gauge", "Resident memory of the gateway itself.", [Sample("", {}, _own_rss())]
    )


def _histogram(labels: Mapping[str, str], counts: Iterable[int], total: float) -> Iterator[Sample]:
    seen = 0
    for bound, count in zip((*map(str, DURATION_BOUNDS_S), "+Inf"), counts, strict=True):
        seen += count
        yield Sample("_bucket", {**labels, "le": bound}, seen)
    yield Sample("_sum", labels, total)
    yield Sample("_count", labels, seen)


def render(found: Iterable[Family]) -> bytes:
    """Families without samples are left out."""
    lines: list[str] = []
    for family in found:
        if family.samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [
                f"{family.name}{sample.suffix}{_labels(sample.labels)} {sample.value:.15g}" for sample in family.samples
            ]
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _own_rss() -> float:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
