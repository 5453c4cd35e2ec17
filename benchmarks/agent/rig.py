"""A real gateway process as the agent starts it, and the orders that the agent's control process gives it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.agent.builds import MODEL, MadeBuild
from covey_agent.errors import GatewayError
from covey_agent.gateway.control_api import GatewayStatus, Load, Loaded, ModelSlots, Settle, Switch
from covey_agent.gateway_client import GatewayClient
from covey_contract.messages import Probation
from covey_hil.processes import Child, wait_for

SOON_S = 0.005


class Rig:
    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        words = [sys.executable, "-m", "covey_agent.gateway", "--run-dir", str(self.run_dir), "--port", "0"]
        self.child = Child("gateway", words, folder / "gateway.log")
        self.client = GatewayClient(self.run_dir / "gateway.sock")
        self.port = 0

    @property
    def socket(self) -> str:
        return str(self.run_dir / "inference.sock")

    def start(self) -> None:
        self.child.start()
        self.port = wait_for("the gateway", self._answers, 30, every_s=0.02).http_port

    def _answers(self) -> GatewayStatus | None:
        self.child.check()
        with contextlib.suppress(GatewayError):
            return self.client.status()
        return None

    def load(self, build: MadeBuild, *, background: bool = True) -> Loaded:
        return self.client.load(Load(model=MODEL, build=build.digest, folder=str(build.folder), background=background))

    def switch(self, build: MadeBuild, probation: Probation | None = None) -> None:
        self.client.do(Switch(model=MODEL, build=build.digest, probation=probation))

    def serve(self, build: MadeBuild) -> None:
        self.load(build, background=False)
        self.switch(build)

    def settle(self) -> None:
        """Probation is over; returns when the old runner is gone."""
        self.client.do(Settle(model=MODEL))
        wait_for("the old runner's end", lambda: len(self.slots().runners) == 1, 30, every_s=SOON_S)

    def slots(self) -> ModelSlots:
        return next(one for one in self.client.status().models if one.model == MODEL)

    def runner_pid(self, build: MadeBuild) -> int:
        return next(one.pid for one in self.slots().runners if one.build == build.digest)

    def runner_pids(self) -> list[int]:
        return [one.pid for one in self.slots().runners]

    def pss_mb(self) -> dict[str, float]:
        """Of the gateway and of its runners together, in MB of 10^6 bytes."""
        gateway = psutil.Process(self.child.pid)
        runners = gateway.children(recursive=True)
        return {
            "gateway": gateway.memory_full_info().pss / 1e6,
            "runners": sum(process.memory_full_info().pss for process in runners) / 1e6,
        }


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """In a folder of its own, since sockets' paths are short."""
    with tempfile.TemporaryDirectory(prefix="cb-") as run:
        made = Rig(Path(run))
        made.start()
        try:
            yield made
        finally:
            made.child.stop()
