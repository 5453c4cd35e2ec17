"""What systemd hears, on a socket as it makes one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_agent.supervisor import Supervisor, supervisor_of


@pytest.fixture(params=["path", "abstract"])
def ear(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        bound.settimeout(5)
        yield name, bound


def heard(bound: socket.socket) -> list[str]:
    bound.setblocking(False)
    lines = []
    while True:
        try:
            lines.append(bound.recv(1000).decode())
        except BlockingIOError:
            return lines


def test_ready_alive_status_and_stopping(ear: tuple[str, socket.socket]) -> None:
    name, bound = ear
    supervisor = supervisor_of({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    supervisor.ready()
    supervisor.status("offline")
    supervisor.status("offline")
    supervisor.status("connected")
    for now in (0.0, 1.0, 9.9, 10.0, 15.0, 20.5):
        supervisor.alive(now)
    supervisor.stopping()
    assert heard(bound) == [
        "READY=1",
        "STATUS=offline",
        "STATUS=connected",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_nobody_watches(ear: tuple[str, socket.socket], more: dict[str, str]) -> None:
    name, bound = ear
    supervisor_of({"NOTIFY_SOCKET": name, **more}).alive(1e9)
    assert heard(bound) == []


def test_a_watchdog_for_this_process(ear: tuple[str, socket.socket]) -> None:
    name, bound = ear
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "77"}
    supervisor_of(environment, pid=77).alive(1.0)
    assert heard(bound) == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_a_supervisor_that_is_not_there_disturbs_nothing(address: str) -> None:
    supervisor = supervisor_of({"NOTIFY_SOCKET": address})
    supervisor.ready()
    supervisor.status("x")
    Supervisor().stopping()
