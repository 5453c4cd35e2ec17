"""A fleet over this machine's own network address: HTTPS by the fleet's CA, for people, the worker and a device with a token alone."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from covey_agent.gateway_process import run_folder
from covey_hil.digits.data import load, model_path, write_samples

BIN = Path(sys.executable).parent
DEVICE = "press-7"
PATIENCE_S = 90.0
TARGET = "onnxruntime-fp32"
T = TypeVar("T")


def _own_address() -> str | None:
    """An IPv4 address of this machine that is not its loopback."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        for address in addresses:
            if name in up and address.family is socket.AF_INET:
                ip = ipaddress.ip_address(address.address)
                if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified):
                    return address.address
    return None


ADDRESS = _own_address()
pytestmark = pytest.mark.skipif(ADDRESS is None, reason="this machine has no address but its loopback")


def _until(what: str, look: Callable[[], T | None], seconds: float = PATIENCE_S) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come about in {seconds:g} s")


class Place:
    """A server's data folder, a device's state folder and an operator's settings, with the commands that work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.state = folder / "device"
        self._children: list[subprocess.Popen[bytes]] = []
        # Nothing of whoever runs the tests: neither settings nor proxies.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("COVEY_") and "proxy" not in name.lower()
        }
        self.environment["COVEY_CONFIG"] = str(folder / "config")

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], stdout=log, stderr=log, env=self.environment, cwd=self.folder
            )
        self._children.append(child)
        return child

    def serve(self, *options: str) -> dict[str, Any]:
        """Start the server; its server.json."""
        child = self.start("server", "covey-server", "run", "--data", str(self.data), *options)
        file = self.data / "server.json"

        def told() -> dict[str, Any] | None:
            assert child.poll() is None, (self.folder / "server.log").read_text()
            return json.loads(file.read_text()) if file.exists() else None

        return _until("server.json", told)

    def run(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=PATIENCE_S,
            env={**self.environment, **environment},
            cwd=self.folder,
            check=False,
        )

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self) -> None:
        gateway = run_folder(self.state) / "gateway.pid"
        for child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        # What the agent could not end itself.
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(gateway.read_text()))
            if "covey_agent.gateway" in process.cmdline():
                process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.end()


def _one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """It failed with this code and said so in one line that has all of these words."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def test_a_device_joins_with_its_token_alone_and_serves(place: Place) -> None:
    told = place.serve(
        "--listen", "0.0.0.0:0", "--public-host", str(ADDRESS), "--worker-targets", TARGET, "--log-level", "info"
    )
    url, ca = told["url"], told["ca"]
    assert url.startswith(f"https://{ADDRESS}:")
    assert told["broker"]["host"] == ADDRESS
    admin = (place.data / "admin-token").read_text()

    # The operator: without the CA, with another's, with it, and from then on without naming it.
    _one_line(place.run("covey", "login", url, stdin=admin), 2, "is not trusted", f"covey login {url} --ca FILE")
    assert not (place.folder / "config" / "client.json").exists()
    _one_line(place.run("covey", "login", url, "--ca", "none.pem", stdin=admin), 1, "none.pem", "No such file")
    _one_line(place.run("covey", "login", url, "--ca", str(place.data / "lock"), stdin=admin), 1, "no certificate")
    other = place.folder / "other.pem"
    other.write_text((place.data / "ca" / "server.pem").read_text())
    _one_line(place.run("covey", "whoami", "--server", url, COVEY_CA=str(other)), 2, "is not trusted")
    done = place.run("covey", "login", url, "--ca", ca, stdin=admin)
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in (place.folder / "config").glob("ca-*.pem")] == [Path(ca).read_text()]
    assert place.json("covey", "whoami")["role"] == "admin"

    # Plain HTTP to this port; another name than the certificate's.
    plain = url.replace("https:", "http:")
    _one_line(place.run("covey", "whoami", "--server", plain), 4, "begins with https://")
    port = url.rpartition(":")[2]
    # 127.0.0.2 is this machine too, but no name of the certificate.
    elsewhere = place.run("covey", "whoami", "--server", f"https://127.0.0.2:{port}", "--ca", ca)
    _one_line(elsewhere, 2, "another name", "--public-host")

    # The device: a token with another CA's fingerprint, then its own; never a CA file.
    token: str = place.json("covey", "device", "token")["token"]
    enroll = ("covey-agent", "enroll", "--state", str(place.state), "--device", DEVICE)
    head, fingerprint, secret = token.split(".")
    wrong = ".".join((head, fingerprint[::-1], secret))
    refused = place.run(*enroll, "--server", url, "--token", wrong)
    _one_line(refused, refused.returncode, "this is not the token's server")
    assert refused.returncode != 0
    refused = place.run(*enroll, "--server", plain, "--token", token)
    assert refused.returncode != 0
    _one_line(refused, refused.returncode, "plain http would show the claim token")
    refused = place.run(*enroll, "--server", plain, "--token", token, "--allow-http")
    assert refused.returncode != 0
    _one_line(refused, refused.returncode, "begins with https://")
    assert not (place.state / "identity").exists()
    done = place.run(*enroll, "--server", url, "--token", token)
    assert done.returncode == 0, done.stderr
    assert f"enrolled as {DEVICE}; broker {ADDRESS}:{told['broker']['port']}" in done.stdout
    place.start("agent", "covey-agent", "run", "--state", str(place.state), "--inference-port", "0")

    # A model, by the command line, built by the server's own worker over HTTPS.
    calibration, evaluation, labels = write_samples(place.folder)
    samples = ("--calibration", str(calibration), "--evaluation", str(evaluation), "--labels", str(labels))
    push = ("covey", "model", "push", "digits", "1.0", str(model_path("1.0")), "--target", TARGET, *samples)
    done = place.run(*push, "--wait", "--timeout", "80s", "--ca", ca)
    assert done.returncode == 0, done.stdout + done.stderr + (place.data / "worker.log").read_text()
    done = place.run("covey", "device", "assign", DEVICE, "digits", "1.0", "--ca", ca)
    assert done.returncode == 0, done.stderr

    def serving() -> bool | None:
        models = json.loads(place.run("covey-agent", "status", "--state", str(place.state), "--json").stdout)["models"]
        return True if any(model["version"] == "1.0" for model in models) else None

    _until("digits 1.0 on the device", serving)
    _, held_out = load()
    image = place.folder / "image.npy"
    np.save(image, held_out.images[:1])
    done = place.run("covey-agent", "infer", "--state", str(place.state), "digits", str(image))
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert int(np.argmax(outputs[0]["data"])) == int(held_out.labels[0])
    checks = json.loads(place.run("covey-agent", "doctor", "--state", str(place.state), "--json").stdout)
    broker = next(check for check in checks if check["name"] == "broker")
    assert broker["ok"], broker
    assert str(ADDRESS) in broker["words"]


def test_on_the_servers_machine_the_folder_is_enough(place: Place) -> None:
    told = place.serve("--listen", f"{ADDRESS}:0", "--local-worker", "false")
    assert place.json("covey", "whoami", "--data", str(place.data))["role"] == "admin"
    done = place.run("covey", "login", "--data", str(place.data))
    assert done.returncode == 0, done.stderr
    stored = json.loads((place.folder / "config" / "client.json").read_text())
    assert (place.folder / "config" / stored["ca"]).read_text() == Path(told["ca"]).read_text()
    assert place.json("covey", "whoami")["role"] == "admin"
    # A worker elsewhere.
    secret = (place.data / "worker-token").read_text().strip()
    worker = ("covey-convert", "worker", "--server", told["url"], "--targets", TARGET, "--once")
    assert place.run(*worker, "--ca", told["ca"], COVEY_TOKEN=secret).returncode == 0
    assert place.run(*worker, COVEY_TOKEN=secret, COVEY_CA=told["ca"]).returncode == 0
    failed = place.run(*worker, COVEY_TOKEN=secret)
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr
    assert "is not trusted" in failed.stderr.splitlines()[-1]


def test_https_to_a_plain_server_is_one_line(place: Place) -> None:
    told = place.serve("--listen", "127.0.0.1:0", "--local-worker", "false")
    url = told["url"].replace("http:", "https:")
    _one_line(place.run("covey", "whoami", "--server", url), 4, "does not speak HTTPS")
    token = place.json("covey", "device", "token", "--data", str(place.data))["token"]
    refused = place.run("covey-agent", "enroll", "--state", str(place.state), "--server", url, "--token", token)
    assert refused.returncode != 0
    _one_line(refused, refused.returncode, "does not speak HTTPS")


def test_a_public_host_is_a_name_alone(place: Place) -> None:
    done = place.run("covey-server", "run", "--data", str(place.data), "--public-host", "https://fleet.example:8443")
    _one_line(done, 2, "setting public_host", "neither https:// before nor :PORT after it")
