"""Many simulated devices on one event loop, with a file that says each half second how they are, and one that says at the end what
each of them has said and heard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey_contract.facts import Facts
from covey_hil.simulator.device import Place, SimulatedDevice, record_of

ADMITTED = 200  # devices that connect at once
HEARTBEAT_S = 30.0
STATUS_S = 0.5
LAST_WORDS_S = 60.0
LAST_RESEND_S = 5.0


@dataclass(frozen=True)
class Plan:
    """Which devices there are: `ids`, all with these facts, each serving `active` of `model`."""

    ids: Sequence[str]
    facts: Facts
    model: str
    active: str | None
    host: str
    port: int
    step_s: float
    seed: int = 1


async def simulate(plan: Plan, folder: Path) -> None:
    """Run until SIGTERM; then wait until all reports are acknowledged, at most `LAST_WORDS_S`, and write `folder`/record.json.
    Meanwhile `folder`/status.json holds {connected, unacknowledged, heard: {BUILD: devices}, active: {BUILD: devices}}."""
    draw = random.Random(plan.seed)  # noqa: S311 - pauses, no secrets
    place = Place(plan.host, plan.port, lambda: time.time_ns() // 1_000_000, time.monotonic, draw, plan.step_s)
    devices = [SimulatedDevice(each, plan.facts, plan.model, plan.active, place) for each in plan.ids]
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    allow_files(len(devices) + 100)
    admit = asyncio.Semaphore(ADMITTED)
    running = [loop.create_task(device.run(admit)) for device in devices]
    keeping = [loop.create_task(_beat(devices)), loop.create_task(_tell(devices, folder / "status.json"))]
    await stopping.wait()
    for _ in range(int(LAST_WORDS_S / STATUS_S)):
        if not any(device.unacknowledged for device in devices):
            break
        for device in devices:
            device.say_again(time.monotonic() - LAST_RESEND_S)
        await asyncio.sleep(STATUS_S)
    for task in (*running, *keeping):
        task.cancel()
    await asyncio.gather(*running, *keeping, return_exceptions=True)
    _write(folder / "record.json", [record_of(device) for device in devices])


def allow_files(number: int) -> None:
    """Each session is a file. Raises `ValueError` if the machine allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise ValueError(f"{number} open files are needed, and {hard} are allowed (ulimit -Hn)")
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


async def _beat(devices: Sequence[SimulatedDevice]) -> None:
    """Each device once in `HEARTBEAT_S`, one after the other."""
    while True:
        for index, device in enumerate(devices):
            if device.connected:
                device.beat(time.monotonic())
            if index % 50 == 0:
                await asyncio.sleep(HEARTBEAT_S * 50 / len(devices))


async def _tell(devices: Sequence[SimulatedDevice], path: Path) -> None:
    while True:
        heard = Counter(device.heard[-1].build for device in devices if device.heard)
        status = {
            "connected": sum(device.connected for device in devices),
            "unacknowledged": sum(device.unacknowledged for device in devices),
            "heard": dict(heard),
            "active": dict(Counter(device.active or "" for device in devices)),
        }
        _write(path, status)
        await asyncio.sleep(STATUS_S)


def _write(path: Path, value: Any) -> None:
    """Whole or not at all: others read it meanwhile."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(value))
    with contextlib.suppress(OSError):
        beside.replace(path)
