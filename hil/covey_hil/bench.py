"""A bench: something that holds one device under test and can cut its power. The acceptance suite knows nothing else of it.

The first bench is a local process. A bench for a real board implements the same five methods (power by a relay, files by SSH).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from covey_hil.fleet import LocalAgent


class Bench(Protocol):
    """One device under test. `simulated` benches stand in for hardware and are called so in every report."""

    name: str
    simulated: bool

    def enroll(self, server: str, token: str) -> None:
        """Give the device its identity; raises `ProcessError` if it is refused."""

    def power_on(self) -> None: ...

    def power_cut(self) -> None:
        """Take the power away at once, whatever the device is doing."""

    def inference_address(self) -> tuple[str, int]:
        """Host and port of the device's gateway."""

    def close(self) -> None: ...


class LocalProcessBench:
    """The agent as a process on this machine; a power cut is a SIGKILL of everything at once.

    Data that the kernel has accepted survives it, as it would not survive a real cut: what fsync is for is tested elsewhere.
    """

    name = "local-process"
    simulated = False

    def __init__(self, folder: Path, device: str, facts: Path | None = None) -> None:
        self._agent = LocalAgent(device, folder / device, folder / f"{device}.log", facts=facts, telemetry_s=1.0)
        self.simulated = facts is not None

    def enroll(self, server: str, token: str) -> None:
        self._agent.enroll(server, token)

    def power_on(self) -> None:
        self._agent.start()

    def power_cut(self) -> None:
        self._agent.power_off()

    def inference_address(self) -> tuple[str, int]:
        return "127.0.0.1", self._agent.port

    def close(self) -> None:
        self._agent.stop()


BENCHES: dict[str, Callable[[Path, str], Bench]] = {"local-process": LocalProcessBench}
