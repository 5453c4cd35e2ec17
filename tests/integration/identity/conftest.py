"""A real server with HTTPS and a real mosquitto, a real agent, and certificates of some seconds' life."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest

from covey_agent.pkcs11.address import Address
from covey_client.api import Client
from covey_hil.processes import Child
from covey_hil.testing import softhsm

BIN = Path(sys.executable).parent
DEVICE = "press-7"
PATIENCE_S = 60.0
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], seconds: float = PATIENCE_S) -> T:
    """What `look` gives once it gives something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come about in {seconds:g} s")


class Place:
    """A server and a device by their folders. `later_s`: how far the clocks of all processes are ahead."""

    def __init__(self, folder: Path, life_s: float, *, host: str = "0.0.0.0:0", **settings: str) -> None:
        self.folder, self.host = folder, host
        self.data, self.state = folder / "data", folder / "state"
        self.settings = {"certificate_days": str(life_s / 86_400), "local_worker": "false", **settings}
        self.later_s = 0
        self.environment: dict[str, str] = {}  # of the device, beside what there is
        self.server: Child | None = None
        self.agent: Child | None = None

    # --- the server -------------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """On the port that it had before: devices know it."""
        (self.data / "server.json").unlink(missing_ok=True)
        words = [str(BIN / "covey-server"), "run", "--data", str(self.data), "--listen", self.host]
        words += ["--public-host", "127.0.0.1"]
        words += [word for name, value in self.settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        self.server = server = Child("server", words, self.folder / "server.log", self._clock())
        server.start()

        def up() -> bool:
            server.check()
            return (self.data / "server.json").exists()

        until("the server", up)
        self.host = f"{self.host.rpartition(':')[0]}:{self.told['url'].rpartition(':')[2]}"

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.stop(20.0)

    @property
    def told(self) -> Any:
        return json.loads((self.data / "server.json").read_bytes())

    @property
    def client(self) -> Client:
        ca = self.told.get("ca")
        token = (self.data / "admin-token").read_text().strip()
        return Client(self.told["url"], token, ca=Path(ca) if ca else None)

    def covey(self, *words: str, code: int = 0) -> str:
        """The operators' command line."""
        env = {**os.environ, "COVEY_SERVER": self.told["url"], "COVEY_TOKEN": self.client_token}
        if "ca" in self.told:
            env["COVEY_CA"] = self.told["ca"]
        done = subprocess.run([BIN / "covey", *words], capture_output=True, text=True, timeout=60, check=False, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def client_token(self) -> str:
        return (self.data / "admin-token").read_text().strip()

    def device(self) -> Any:
        with self.client as client:
            return client.device(DEVICE)

    def audited(self) -> list[str]:
        with self.client as client:
            return [one["action"] for one in client.admin.audit()]

    # --- the device -------------------------------------------------------------------------------------------------

    def enrol(self, *words: str, server: str | None = None) -> None:
        with self.client as client:
            token = client.create_claim_token(device=DEVICE)["token"]
        done = self.command("enroll", "--server", server or self.told["url"], "--token", token, *words)
        assert done.returncode == 0, done.stderr

    def start_agent(self, *words: str) -> None:
        command = [str(BIN / "covey-agent"), "run", "--state", str(self.state), "--inference-port", "0"]
        command += ["--retry", "1", "--heartbeat", "1", "--telemetry-interval", "2", "--keep-gateway"]
        self.agent = Child(
            "agent", [*command, *words], self.folder / "agent.log", {**self._clock(), **self.environment}
        )
        self.agent.start()

    def stop_agent(self) -> None:
        if self.agent is not None:
            self.agent.stop()

    def switch_off(self) -> None:
        """The device, all of it."""
        self.stop_agent()
        if (gateway := self.gateway()) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                gateway.terminate()
                gateway.wait(20)

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "covey-agent"), name, "--state", str(self.state), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **self._clock(), **self.environment},
        )

    def status(self) -> Any:
        return json.loads(self.command("status", "--json").stdout)

    def gateway(self) -> psutil.Process | None:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            return psutil.Process(int((self.state / "run" / "gateway.pid").read_text()))
        return None

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def renewals(self) -> int:
        """How often the device has taken a new certificate into use."""
        return self.log().count("the certificate was renewed")

    # --- both -------------------------------------------------------------------------------------------------------

    def _clock(self) -> dict[str, str]:
        """The environment of processes whose clock is ahead."""
        if not self.later_s:
            return {}
        shim = self.folder / "later.so"
        if not shim.exists():
            words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(Path(__file__).with_name("later.c")), "-ldl"]
            subprocess.run(words, check=True, timeout=60)
        return {"LD_PRELOAD": str(shim), "LATER_S": str(self.later_s)}

    def end(self) -> None:
        self.switch_off()
        self.stop_server()


@contextmanager
def door(port: int) -> Iterator[int]:
    """Another port of this machine that leads to the server's; nobody comes through once it is shut."""
    stopping = threading.Event()

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        while not stopping.is_set():
            try:
                outer, _ = listener.accept()
            except TimeoutError:
                continue
            with outer, socket.create_connection(("127.0.0.1", port), timeout=20) as inner:
                back = threading.Thread(target=carry, args=(inner, outer))
                back.start()
                carry(outer, inner)
                back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopping.set()
            thread.join()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Makes a place whose server runs and whose device has enrolled; `life_s`: of its certificates."""
    made: list[Place] = []

    def one(life_s: float, *, enrol: bool = True, **more: str) -> Place:
        place = Place(tmp_path, life_s, **more)
        made.append(place)
        place.start_server()
        if enrol:
            place.enrol()
        return place

    try:
        yield one
    finally:
        for place in made:
            place.end()


@pytest.fixture
def behind(make: Callable[..., Place]) -> Callable[..., Place]:
    """As `make`; the device has enrolled at an address where nothing answers any more."""

    def one(life_s: float, *words: str) -> Place:
        place = make(life_s, enrol=False)
        with door(urlsplit(place.told["url"]).port or 0) as port:
            place.enrol(*words, server=f"https://127.0.0.1:{port}")
        return place

    return one


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[str]]:
    """Of empty tokens."""
    with softhsm.tokens(tmp_path_factory.mktemp("hsm"), 10) as made:
        yield iter(made)


@pytest.fixture
def where(labels: Iterator[str], tmp_path: Path) -> Address:
    """For keys of a device, in an empty token."""
    return softhsm.address(next(labels), tmp_path / "pin")
