"""`covey-server` as a process of its own: how it starts, refuses to, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

PROGRAM = [str(Path(sys.executable).with_name("covey-server"))]
Start = Callable[..., "Server"]


class Server:
    """A running server on a folder."""

    def __init__(self, data: Path, options: tuple[str, ...]) -> None:
        self.data = data
        self.log = data.with_suffix(".log")
        command = [*PROGRAM, "run", "--data", str(data), "--listen", "127.0.0.1:0", *options]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stderr=output, stdout=output)

    def told(self, *, timeout: float = 40) -> dict[str, Any]:
        """server.json, once this process has written it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            file = self.data / "server.json"
            if file.exists() and (told := json.loads(file.read_text()))["pid"] == self.process.pid:
                return dict(told)
            time.sleep(0.05)
        raise AssertionError(f"no server.json\n{self.log.read_text()}")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.data / 'admin-token').read_text().strip()}"}

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server on a folder below the test's own."""
    made: list[Server] = []

    def begin(*options: str, worker: bool = False, name: str = "data") -> Server:
        made.append(Server(tmp_path / name, (*options, "--local-worker", str(worker).lower())))
        return made[-1]

    yield begin
    for server in made:
        server.end(signal.SIGKILL)


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def _assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_a_server_lives_and_ends_cleanly(start: Start) -> None:
    server = start(worker=True)
    told = server.told()
    assert httpx.get(f"{told['url']}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{told['url']}/readyz").json() == {"status": "ok"}
    assert httpx.get(f"{told['url']}/api/v1/whoami", headers=server.headers).json() == {
        "name": "admin",
        "role": "admin",
    }
    assert told["broker"]["port"] > 0
    for secret in ("admin-token", "worker-token", "keys/release.pem", "keys/director.pem"):
        assert stat.S_IMODE((server.data / secret).stat().st_mode) == 0o600, secret
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    children = server.children()
    assert len(children) >= 2  # broker and build worker
    assert server.end() == 0
    _assert_gone(children)
    assert not (server.data / "server.json").exists()
    log = server.log.read_text()
    assert log.count("DEVELOPMENT signing key") == 2
    assert "Traceback" not in log
    assert (server.data / "admin-token").read_text().strip() not in log


def test_a_killed_server_leaves_no_children_and_the_next_goes_on(start: Start) -> None:
    first = start(worker=True)
    first.told()
    token, trust = first.headers, (first.data / "keys" / "release.pem").read_bytes()
    children = first.children()
    first.end(signal.SIGKILL)
    _assert_gone(children)
    assert (first.data / "server.json").exists()
    second = start()
    told = second.told()
    assert second.headers == token
    assert (second.data / "keys" / "release.pem").read_bytes() == trust
    assert httpx.get(f"{told['url']}/api/v1/whoami", headers=token).status_code == 200
    assert second.log.read_text().count("DEVELOPMENT signing key") == 2  # of the first start


def test_a_worker_that_dies_is_started_again(start: Start) -> None:
    server = start(worker=True)
    server.told()

    def workers() -> list[psutil.Process]:
        living = [one for one in server.children() if one.status() != psutil.STATUS_ZOMBIE]
        return [one for one in living if "covey-convert" in " ".join(one.cmdline())]

    def await_worker(not_pid: int = 0) -> psutil.Process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := [one for one in workers() if one.pid != not_pid]:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(server.log.read_text())

    first = await_worker()
    first.kill()
    assert await_worker(first.pid).pid != first.pid
    assert server.end() == 0


def test_a_second_server_on_the_same_folder_is_one_line(start: Start) -> None:
    server = start()
    server.told()
    second = _run("run", "--data", str(server.data), "--listen", "127.0.0.1:0")
    assert second.returncode == 3
    assert second.stderr == (
        f"covey-server: another server runs on the data folder {server.data} (process {server.process.pid})\n"
    )
    assert server.process.poll() is None
    assert server.told()["pid"] == server.process.pid


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _run("run", "--data", str(tmp_path / "data"), "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (
        3,
        f"covey-server: port {port} on 127.0.0.1 is in use by another program\n",
    )


def _a_file(folder: Path) -> None:
    folder.write_text("not a folder")


def _a_broken_key(folder: Path) -> None:
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "release.pem").write_text("nonsense")


def _a_broken_database(folder: Path) -> None:
    folder.mkdir()
    (folder / "covey.db").write_bytes(b"this is no database" * 100)


BAD_STARTS: list[tuple[str, Callable[[Path], object], list[str], int, str]] = [
    ("bad setting", Path.mkdir, ["--log-level", "loud"], 2, "setting log_level: "),
    ("bad address", Path.mkdir, ["--listen", "8080"], 2, "setting listen: "),
    ("an address of elsewhere", Path.mkdir, ["--listen", "192.0.2.1:0"], 1, "setting listen: "),
    ("no such config", Path.mkdir, ["--config", "/no/such/file"], 2, "setting config: "),
    ("folder is a file", _a_file, [], 1, "the data folder "),
    ("broken key", _a_broken_key, [], 1, "the signing key "),
    ("broken database", _a_broken_database, [], 1, "the database "),
    ("no broker", Path.mkdir, ["--broker-url", "mqtt://127.0.0.1:1"], 1, "no broker answers"),
    ("no mosquitto", Path.mkdir, ["--mosquitto", "/no/such/program"], 1, "setting mosquitto: "),
]


@pytest.mark.parametrize(
    ("prepare", "options", "code", "words"), [pytest.param(*one[1:], id=one[0]) for one in BAD_STARTS]
)
def test_what_keeps_a_server_from_starting_is_one_line(
    tmp_path: Path, prepare: Callable[[Path], object], options: list[str], code: int, words: str
) -> None:
    data = tmp_path / "data"
    prepare(data)
    done = _run("run", "--data", str(data), "--listen", "127.0.0.1:0", "--log-level", "error", *options)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"covey-server: {words}")
    assert not (data / "server.json").exists()


def test_beyond_loopback_it_is_https_by_the_fleets_own_authority(start: Start) -> None:
    server = start("--listen", "0.0.0.0:0", "--public-host", "127.0.0.1", "--broker-host", "127.0.0.1", worker=True)
    told = server.told()
    assert told["url"].startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context(cafile=told["ca"])
    assert httpx.get(f"{told['url']}/healthz", verify=trusting).status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{told['url']}/healthz")
    # Its own worker trusts that authority too.
    with httpx.Client(base_url=told["url"], verify=trusting, headers=server.headers) as client:
        form = {"version": "1", "targets": "onnxruntime-fp32"}
        client.post("/api/v1/models/junk/versions", data=form, files={"source": ("m.onnx", b"no graph")})
        deadline = time.monotonic() + 60
        while client.get("/api/v1/builds/1").json()["state"] in {"queued", "building"}:
            assert time.monotonic() < deadline, (server.data / "worker.log").read_text()
            time.sleep(0.1)
        assert client.get("/api/v1/builds/1").json()["reason"]


def test_tokens_can_be_made_on_the_data_folder(start: Start, tmp_path: Path) -> None:
    missing = _run("token", "create", "anna", "--role", "viewer", "--data", str(tmp_path / "none"))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    server = start()
    told = server.told()
    arguments = ("token", "create", "anna", "--role", "operator", "--data", str(server.data))
    made = _run(*arguments)
    assert made.returncode == 0, made.stderr
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert httpx.get(f"{told['url']}/api/v1/whoami", headers=headers).json() == {"name": "anna", "role": "operator"}
    again = _run(*arguments)
    assert (again.returncode, again.stderr.startswith("covey-server: there is a token 'anna'")) == (1, True)
    entry = httpx.get(f"{told['url']}/api/v1/audit?limit=1", headers=server.headers).json()["items"][0]
    assert (entry["action"], entry["object"], entry["origin"]) == ("token.create", "anna", "command line")


def test_the_log_can_be_json_and_settings_come_from_the_environment(tmp_path: Path) -> None:
    environment = {"COVEY_SERVER_MOSQUITTO": "/no/such", "COVEY_SERVER_LOG_FORMAT": "json"}
    done = _run("run", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", **environment)
    lines = done.stderr.splitlines()
    assert {"time", "level", "logger", "message"} <= json.loads(lines[0]).keys()
    assert lines[-1].startswith("covey-server: setting mosquitto: ")


def test_settings_and_api_can_be_printed() -> None:
    table = _run("settings", "--markdown").stdout
    assert "| `listen` | str | `127.0.0.1:8080` |" in table
    document = json.loads(_run("openapi").stdout)
    assert {"/api/v1/models/{model}/versions", "/api/v1/campaigns/plan", "/api/v1/enrol"} <= document["paths"].keys()
