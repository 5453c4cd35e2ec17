"""A whole fleet on this machine: the server and agents, each a process of its own, as an operator would start them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

from covey_client.api import Client
from covey_hil.processes import Child, ProcessError, command, descendants, kill_pid, wait_for
from covey_server.fleet.ports import free_port


class LocalServer:
    """`covey-server run` on a data folder."""

    def __init__(self, data: Path, log: Path, *, port: int, settings: dict[str, str] | None = None) -> None:
        self.data = data
        words = [command("covey-server"), "run", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
        environment = {f"COVEY_SERVER_{name.upper()}": value for name, value in (settings or {}).items()}
        self.child = Child("server", words, log, environment)
        self.url = f"http://127.0.0.1:{port}"

    def start(self, timeout_s: float = 60.0) -> None:
        """Start it and wait until it is ready to work."""
        self.child.start()
        wait_for("the server", self._ready, timeout_s)

    def _ready(self) -> bool:
        self.child.check()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200
        return False

    def client(self) -> Client:
        """A client with the rights of the administrator's token that the server made at its first start."""
        return Client(self.url, (self.data / "admin-token").read_text().strip())

    @property
    def environment(self) -> dict[str, str]:
        """What the operators' command line needs to talk to this server."""
        return {"COVEY_SERVER": self.url, "COVEY_TOKEN": (self.data / "admin-token").read_text().strip()}

    @property
    def broker(self) -> str:
        """Which broker the server uses, as it says itself."""
        told = json.loads((self.data / "server.json").read_text())
        return str(told["broker"]["what"])

    @property
    def broker_pid(self) -> int | None:
        """The embedded broker's process."""
        for pid in descendants(self.child.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).name() == "mosquitto":
                    return pid
        return None


class LocalAgent:
    """`covey-agent run` on a state folder. `facts`: a file of facts for a simulated device; None for this machine's own. `options`: further
    ones of `run`."""

    def __init__(
        self,
        name: str,
        state: Path,
        log: Path,
        *,
        facts: Path | None = None,
        telemetry_s: float = 2.0,
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.state = state
        self.facts = facts
        self.port = free_port()
        self._log = log
        simulated = ["--facts", str(facts)] if facts else []
        self.child = Child(
            name,
            [command("covey-agent"), "run", "--state", str(state), "--inference-port", str(self.port)]
            + ["--telemetry-interval", str(telemetry_s), *simulated, *options],
            log,
        )

    def enroll(self, server: str, token: str) -> None:
        simulated = ["--facts", str(self.facts)] if self.facts else []
        words = [
            "enroll",
            "--server",
            server,
            "--token",
            token,
            "--state",
            str(self.state),
            "--device",
            self.name,
            *simulated,
        ]
        enrolment = Child(f"{self.name}: enroll", [command("covey-agent"), *words], self._log)
        enrolment.start()
        if code := enrolment.process.wait(60):
            raise ProcessError(f"{self.name} could not enrol ({code}):\n{enrolment.tail()}")

    def start(self) -> None:
        self.child.start()

    def status(self) -> dict[str, object]:
        """`covey-agent status --json`."""
        words = [command("covey-agent"), "status", "--state", str(self.state), "--json"]
        done = subprocess.run(words, capture_output=True, check=False, timeout=30)
        answer: dict[str, object] = json.loads(done.stdout or b"{}")
        return answer

    @property
    def gateway_pid(self) -> int | None:
        """The gateway's process, if it is alive. A pid file outlives its process, so what runs under the number is looked at."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int((self.state / "run" / "gateway.pid").read_text()))
            if "covey_agent.gateway" in process.cmdline():
                return process.pid
        return None

    @property
    def in_mid_download(self) -> bool:
        """Whether some of a build's files have begun to arrive, but the build is not staged yet."""
        return len([path for path in (self.state / "fetch").glob("*/*") if path.suffix != ".bits"]) >= 2

    def kill_control(self) -> None:
        """SIGKILL the control process alone; gateway and runners go on."""
        self.child.kill()

    def power_off(self) -> None:
        """SIGKILL everything on the device at once, as when the plug is pulled."""
        gateway = self.gateway_pid
        doomed = [*descendants(self.child.pid), *([gateway, *descendants(gateway)] if gateway else [])]
        if self.child.alive:
            self.child.process.kill()
        for pid in doomed:
            kill_pid(pid)
        self.child.process.wait()

    def stop(self) -> None:
        """End the agent and what it serves with."""
        gateway = self.gateway_pid
        runners = descendants(gateway) if gateway else []
        if self.child.alive:
            self.child.stop()
        for pid in [*([gateway] if gateway else []), *runners]:
            kill_pid(pid)
