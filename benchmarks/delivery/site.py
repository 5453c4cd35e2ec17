"""A broker, the serving process and the devices of one measurement, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.delivery.builds import Made, make
from benchmarks.delivery.devices import FetchingDevice, Habit
from benchmarks.delivery.serving import Site
from covey_hil.processes import Child, wait_for
from covey_server.fleet.broker import find_mosquitto
from covey_server.fleet.mosquitto_config import MAX_INFLIGHT_MESSAGES, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES
from covey_server.fleet.ports import free_port

PATIENCE_S = 900.0
_CONNECT_AT_ONCE = 25
_SAMPLE_S = 0.2


class Meter:
    """CPU seconds of a process between two looks, and the most memory that it held."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._began = self._cpu()
        self._most = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """(CPU seconds, most MB resident)."""
        used = self._cpu() - self._began
        self._stopping.set()
        self._thread.join()
        return used, self._most / 1e6

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._most = max(self._most, self._process.memory_info().rss)
            self._stopping.wait(_SAMPLE_S)


class Measurement:
    """One way of delivery to one fleet: use `opened`, then `run`. `how`: broadcast, pull or push."""

    def __init__(self, how: str, folder: Path, size: int, devices: int, bytes_per_s: float) -> None:
        self._how = how
        self._folder = folder
        self._devices = devices
        self.port = free_port()
        database = f"sqlite:///{folder / 'covey.db'}"
        self.made: Made = make(folder, database, size, devices)
        site = Site(port=self.port, database=database, build=self.made.digest, bytes_per_s=bytes_per_s, gather_s=0.5)
        (folder / "site.json").write_bytes(msgspec.json.encode(site))
        program = find_mosquitto(None)
        if program is None:
            raise FileNotFoundError("mosquitto is not installed: ./dev setup")
        (folder / "mosquitto.conf").write_text(_broker_config(self.port, bounded=how != "push"))
        self._broker = Child("broker", [program, "-c", str(folder / "mosquitto.conf")], folder / "mosquitto.log")
        words = [sys.executable, "-m", "benchmarks.delivery.serving", str(folder)]
        self._server = Child("server", words, folder / "server.log")

    def start(self) -> None:
        self._broker.start()
        wait_for("the broker", lambda: _listens(self.port), 10.0)
        self._server.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def stop(self) -> None:
        for child in (self._server, self._broker):
            if child.alive:
                if child is self._server:
                    child.stdin.close()
                child.stop(30.0)
        if self._server.process.stdout is not None:
            self._server.process.stdout.close()

    def run(self, habits: Sequence[Habit]) -> dict[str, Any]:
        """One habit a device. One row of the table."""
        return asyncio.run(self._run(self._how, habits))

    async def _run(self, how: str, habits: Sequence[Habit]) -> dict[str, Any]:
        devices = [
            FetchingDevice(
                *(number, self.made, self.port, self._folder, habit),
                listens=how == "broadcast",
                asks=how != "push",
            )
            for number, habit in enumerate(habits)
        ]
        for at in range(0, len(devices), _CONNECT_AT_ONCE):
            await asyncio.gather(*(device.connect() for device in devices[at : at + _CONNECT_AT_ONCE]))
        server, broker = Meter(self._server.pid), Meter(self._broker.pid)
        began, late = time.monotonic(), ""
        if how != "pull":
            await asyncio.to_thread(self._say, f"{how} {len(devices)}")
        tasks = [asyncio.get_running_loop().create_task(device.run(began)) for device in devices]
        _, open_ = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in open_:
            task.cancel()
        for problem in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(problem, Exception):
                late = str(problem)
        took = time.monotonic() - began
        (server_cpu, _), (broker_cpu, broker_mb) = server.stop(), broker.stop()
        sent = await asyncio.to_thread(self._say, "sent")
        for device in devices:
            device.close()
        size, received = self.made.size, sum(device.received for device in devices)
        done = [device for device in devices if device.seconds is not None]
        times = {"fast": _median(done, slow=False), "slow": _median(done, slow=True)}
        return {
            "how": how,
            "bytes": size,
            "devices": len(devices),
            "done": len(done),
            **({"problem": late} if late else {}),
            "seconds": round(took, 2),
            "median_s": times["fast"],
            "median_slow_s": times["slow"],
            "server_cpu_s": round(server_cpu, 3),
            "broker_cpu_s": round(broker_cpu, 3),
            "broker_mb": round(broker_mb, 1),
            "bytes_out": int(sent["bytes"]),
            "out_ratio": round(sent["bytes"] / size, 4),
            "waste": round(received / (size * len(devices)) - 1, 4),
        }

    def _say(self, words: str) -> dict[str, Any]:
        self._server.stdin.write(f"{words}\n".encode())
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.process.stdout is not None  # noqa: S101 - for the type checker
        line = self._server.process.stdout.readline()
        if not line:
            self._server.process.wait(10.0)
            self._server.check()
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def opened(how: str, folder: Path, size: int, devices: int, bytes_per_s: float) -> Iterator[Measurement]:
    folder.mkdir()
    measurement = Measurement(how, folder, size, devices, bytes_per_s)
    try:
        measurement.start()
        yield measurement
    finally:
        measurement.stop()


def _median(devices: Sequence[FetchingDevice], *, slow: bool) -> float | None:
    times = sorted(
        device.seconds
        for device in devices
        if device.seconds is not None and (device.habit.bytes_per_s is not None) == slow
    )
    return round(times[len(times) // 2], 2) if times else None


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _broker_config(port: int, *, bounded: bool) -> str:
    """The limits are those that the server writes for its own broker; without a bound, all that waits for a client is kept, which plain
    pushing needs, since nobody asks again for what was dropped."""
    return "\n".join(
        [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            f"max_inflight_messages {MAX_INFLIGHT_MESSAGES}",
            f"max_queued_messages {MAX_QUEUED_MESSAGES}",
            f"max_queued_bytes {MAX_QUEUED_BYTES if bounded else 0}",
            "set_tcp_nodelay true",
            "connection_messages false",
            "user root",
            "",
        ]
    )
