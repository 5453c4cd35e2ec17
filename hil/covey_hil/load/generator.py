"""Sends real digit images to every device at a constant rate, whatever the answers do (open loop), and writes down what came back.

Latency counts from the moment a request was due, not from when it could be sent, so that a stall is seen in full. A device can
be paused and resumed, for when it is switched off on purpose together with the application on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covey_hil.digits.data import Digits
from covey_hil.load.record import Recorder
from covey_hil.load.wire import Answer, Connection, infer_request

REQUEST_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 64


@dataclass
class Device:
    """One gateway under load."""

    name: str
    host: str
    port: int
    requests: list[bytes]
    idle: list[Connection] = field(default_factory=list)
    paused: bool = False
    in_flight: int = 0


class Generator:
    """Drives all devices until `stop`; what it saw is in `recorder`."""

    def __init__(
        self, urls: Mapping[str, tuple[str, int]], model: str, rate: float, images: Digits, recorder: Recorder
    ) -> None:
        self._images = images
        self._rate = rate
        self._recorder = recorder
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.devices = {
            name: Device(name, host, port, [infer_request(model, image, f"{host}:{port}") for image in images.images])
            for name, (host, port) in urls.items()
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index, device in enumerate(self.devices.values()):
                group.create_task(self._drive(device, index / (len(self.devices) * self._rate)))
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        self._stopping.set()

    async def _drive(self, device: Device, phase: float) -> None:
        start, number = time.time() + phase, 0
        while not self._stopping.is_set():
            due = start + number / self._rate
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), max(due - time.time(), 0))
                return
            if not device.paused:
                image = number % len(device.requests)
                task = asyncio.create_task(self._request(device, image, due))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            number += 1

    async def _request(self, device: Device, image: int, due: float) -> None:
        answer = Answer(0)
        if device.in_flight >= MAX_CONNECTIONS:
            answer = Answer(-2)
        else:
            device.in_flight += 1
            try:
                answer = await asyncio.wait_for(self._ask(device, device.requests[image]), REQUEST_TIMEOUT_S)
            except TimeoutError:
                answer = Answer(-1)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                answer = Answer(0)
            finally:
                device.in_flight -= 1
        self._recorder.add(device.name, due, time.time() - due, image, int(self._images.labels[image]), answer)

    async def _ask(self, device: Device, request: bytes) -> Answer:
        connection = device.idle.pop() if device.idle else await Connection.open(device.host, device.port)
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        device.idle.append(connection)
        return answer

    def pause(self, name: str) -> None:
        """Send no more to this device, and forget its connections: it is about to go away."""
        device = self.devices[name]
        device.paused = True
        while device.idle:
            device.idle.pop().close()

    def resume(self, name: str) -> None:
        self.devices[name].paused = False


async def serve_commands(generator: Generator, recorder: Recorder, record: Path) -> None:
    """Run the generator under commands from standard input: `pause NAME`, `resume NAME`, `stop`; an end of input stops it too.

    Every second a line of JSON with the counts so far goes to standard output; at the end the record is written.
    """
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running = asyncio.create_task(generator.run())
    reporting = asyncio.create_task(_report(recorder))
    while line := (await reader.readline()).decode().split():
        if line[0] == "stop":
            break
        if line[0] == "pause":
            generator.pause(line[1])
        elif line[0] == "resume":
            generator.resume(line[1])
    generator.stop()
    await running
    reporting.cancel()
    recorder.save(record)
    _print(recorder)


async def _report(recorder: Recorder) -> None:
    while True:
        await asyncio.sleep(1.0)
        _print(recorder)


def _print(recorder: Recorder) -> None:
    sys.stdout.write(json.dumps(recorder.totals()) + "\n")
    sys.stdout.flush()
