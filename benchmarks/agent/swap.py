"""Swaps under load: what they cost the requests, and whether memory comes back.

A swap is what the agent orders of its gateway: load beside what serves, switch with a probation, settle. Its window is from 0.1 s before
the load is ordered to 0.2 s after the switch. Steady is the load alone, before the first swap, at half time and after the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent.builds import MODEL, MadeBuild, inputs, make
from benchmarks.agent.load import Load, Numbers, Record
from benchmarks.agent.rig import Rig, rig
from covey_agent.client import Client
from covey_contract.messages import Probation

BEFORE_S, AFTER_S = 0.1, 0.2
LOAD_SHARE = 0.6  # of what the gateway can do at most
PROBATION_S = 0.5
PAUSE_S = 0.2
FIRST_MEMORY_AT = 10


@dataclass
class Timeline:
    """Monotonic seconds."""

    windows: list[tuple[float, float]] = field(default_factory=list)  # from the order to the switch
    serving: list[tuple[float, float, int]] = field(default_factory=list)  # when it alone may answer, and which build
    steady: list[tuple[float, float]] = field(default_factory=list)
    memory: dict[int, dict[str, float]] = field(default_factory=dict)  # PSS after so many swaps


def run(folder: Path, *, swaps: int, steady_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    builds = [make(folder, "1.0", 1), make(folder, "2.0", 2)]
    timeline = Timeline()
    with rig() as gateway:
        gateway.serve(builds[0])
        capacity = measure_capacity(gateway.socket)
        say(f"capacity {capacity:.1f} requests/s")
        load = Load(gateway.socket, LOAD_SHARE * capacity, builds, folder / "load.npz")
        time.sleep(1.0)
        try:
            _drive(gateway, builds, load, timeline, swaps=swaps, steady_s=steady_s, say=say)
        finally:
            record = load.stop()
    return judge(record, timeline) | {
        "capacity_per_s": round(capacity, 1),
        "load_per_s": round(LOAD_SHARE * capacity, 1),
    }


def _drive(
    gateway: Rig,
    builds: list[MadeBuild],
    load: Load,
    timeline: Timeline,
    *,
    swaps: int,
    steady_s: float,
    say: Callable[[str], None],
) -> None:
    def rest() -> None:
        began = time.monotonic()
        time.sleep(steady_s)
        timeline.steady.append((began, time.monotonic()))

    rest()
    for number in range(1, swaps + 1):
        build = builds[number % 2]
        ordered = time.monotonic()
        gateway.load(build)
        gateway.switch(build, Probation())
        switched = time.monotonic()
        timeline.windows.append((ordered, switched))
        time.sleep(PROBATION_S)
        gateway.settle()
        if number in (FIRST_MEMORY_AT, swaps):
            timeline.memory[number] = gateway.pss_mb()
        time.sleep(PAUSE_S)
        timeline.serving.append((switched, time.monotonic(), number % 2))
        load.check()
        if number == swaps // 2:
            rest()
        if number % 50 == 0:
            say(f"{number} swaps")
    rest()


def judge(record: Record, timeline: Timeline) -> dict[str, Any]:
    latency, due = record.latency, record.due
    steady, swapping = _within(due, timeline.steady), np.zeros(len(due), bool)
    for ordered, switched in timeline.windows:
        swapping |= (due >= ordered - BEFORE_S) & (due <= switched + AFTER_S)
    wrong = record.wrong.copy()
    for since, until, build in timeline.serving:
        wrong |= (record.sent >= since) & (record.done <= until) & (record.build >= 0) & (record.build != build)
    steady_ms, swap_ms = _p99_ms(latency[steady]), _p99_ms(latency[swapping])
    first, last = timeline.memory.get(FIRST_MEMORY_AT), timeline.memory[max(timeline.memory)]
    growth = sum(last.values()) - sum(first.values()) if first else None
    return {
        "swaps": len(timeline.windows),
        "requests": len(due),
        "failed": record.failed,
        "wrong": int(wrong.sum()),
        "p99_ratio": round(swap_ms / steady_ms, 2),
        "steady_p50_ms": round(float(np.median(latency[steady])) * 1e3, 2),
        "steady_p99_ms": round(steady_ms, 2),
        "swap_p50_ms": round(float(np.median(latency[swapping])) * 1e3, 2),
        "swap_p99_ms": round(swap_ms, 2),
        "swap_worst_ms": round(float(latency[swapping].max()) * 1e3, 2),
        "swap_s": round(float(np.median([switched - ordered for ordered, switched in timeline.windows])), 2),
        "rss_growth_mb": None if growth is None else round(growth, 2),
        "pss_mb": {
            str(number): {name: round(mb, 1) for name, mb in one.items()} for number, one in timeline.memory.items()
        },
    }


def _within(times: Numbers, spans: list[tuple[float, float]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    inside = np.zeros(len(times), bool)
    for begin, end in spans:
        inside |= (times >= begin) & (times <= end)
    return inside


def _p99_ms(latency: Numbers) -> float:
    return float(np.quantile(latency, 0.99)) * 1e3


def measure_capacity(address: str, image: Numbers | None = None, *, seconds: float = 4.0, callers: int = 3) -> float:
    """Requests a second of callers who each ask again as soon as they have their answer."""
    image, counts = inputs(1)[0] if image is None else image, [0] * callers
    until = time.monotonic() + seconds

    def ask(which: int) -> None:
        with Client(address, timeout_s=30) as client:
            while time.monotonic() < until:
                client.infer(MODEL, {"image": image})
                counts[which] += 1

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds
