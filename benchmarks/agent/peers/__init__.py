"""Other servers, each in an environment of its own, with the same model and over loopback TCP as their users have them.

An environment is made from requirements with hashes and kept in `.peers`; where it cannot be made, the peer is left out and the
reason said. Each server keeps its connection to the caller open, and gets its input the quickest way that it has.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.matrix.subject import Floats
from covey_hil.processes import Child, ProcessError, descendants, kill_pid, wait_for
from covey_server.fleet.ports import free_port

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent.parent.parent / ".peers"
START_S = 120.0


class Unavailable(Exception):  # noqa: N818  # no error: the others are measured without it
    """The peer cannot be had here."""


@dataclass(frozen=True)
class Peer:
    """`prepare` writes what the server needs to a folder and gives its command; `request` is one inference: path, headers, body."""

    name: str
    prepare: Callable[[Path, Path, int], list[str]]  # the model, a folder, a port
    request: Callable[[Floats], tuple[str, dict[str, str], bytes]]
    ready: str

    @contextlib.contextmanager
    def serving(self, model: Path, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[Floats], bytes]]:
        """Asks the server once; raises `Unavailable`."""
        binaries = environment(self.name, say)
        place = folder / self.name
        place.mkdir()
        port = free_port()
        program, *words = self.prepare(model, place, port)
        child = Child(self.name, [str(binaries / program), *words], place / "log")
        child.start()
        try:
            try:
                wait_for(self.name, lambda: _answers(child, port, self.ready), START_S)
            except ProcessError as error:
                raise Unavailable(f"does not start: {error}") from error
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                yield lambda image: _ask(connection, *self.request(image))
        finally:
            below = descendants(child.pid)  # their own processes outlive some of them
            child.stop()
            for pid in below:
                kill_pid(pid)


def environment(name: str, say: Callable[[str], None]) -> Path:
    """The folder of its programs; raises `Unavailable`."""
    requirements, place = HERE / f"{name}.txt", ENVIRONMENTS / name
    stamp, digest = place / "covey.stamp", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        say(f"{name}: an environment of its own …")
        shutil.rmtree(place, ignore_errors=True)
        python = place / "bin" / "python"
        steps = (
            [sys.executable, "-m", "venv", str(place)],
            [str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(requirements)],
        )
        for step in steps:
            done = subprocess.run(step, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise Unavailable(f"cannot be installed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        stamp.write_text(digest)
    return place / "bin"


def _answers(child: Child, port: int, path: str) -> bool:
    child.check()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def _ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: bytes) -> bytes:
    try:
        answer = _answer(connection, path, headers, body)
    except ConnectionError:  # it ends connections that rest for some seconds
        connection.close()
        answer = _answer(connection, path, headers, body)
    content = answer.read()
    if answer.status != 200:
        raise ProcessError(f"{path}: {answer.status} {content[:200]!r}")
    return content


def _answer(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: bytes
) -> http.client.HTTPResponse:
    connection.request("POST", path, body, headers)
    return connection.getresponse()


# --- MLServer ---------------------------------------------------------------------------------------------------------


def _mlserver(model: Path, folder: Path, port: int) -> list[str]:
    """Without a worker process and without its metrics server: the quickest that it can be."""
    shutil.copy(HERE / "mlserver_model.py", folder / "bench_model.py")
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1"}
    quiet = {"parallel_workers": 0, "debug": False, "metrics_endpoint": None, "logging_settings": None}
    (folder / "settings.json").write_text(json.dumps(settings | quiet))
    told = {"name": "bench", "implementation": "bench_model.Bench", "parameters": {"uri": str(model)}}
    (folder / "model-settings.json").write_text(json.dumps(told))
    return ["mlserver", "start", str(folder)]


def _oip(image: Floats) -> tuple[str, dict[str, str], bytes]:
    """Its REST door knows no binary tensors; of the ways to put bytes in JSON this is the quickest."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [tensor | {"data": [base64.b64encode(image.tobytes()).decode()]}]}).encode()
    return "/v2/models/bench/infer", {"Content-Type": "application/json"}, body


# --- LitServe ---------------------------------------------------------------------------------------------------------


def _litserve(model: Path, folder: Path, port: int) -> list[str]:
    shutil.copy(HERE / "litserve_model.py", folder / "bench_model.py")
    return ["python", str(folder / "bench_model.py"), str(model), str(port)]


def _base64(image: Floats) -> tuple[str, dict[str, str], bytes]:
    """It takes JSON or forms; of the ways to put bytes in JSON this is the quickest."""
    body = json.dumps({"image": base64.b64encode(image.tobytes()).decode()}).encode()
    return "/predict", {"Content-Type": "application/json"}, body


PEERS = (
    Peer("mlserver", _mlserver, _oip, "/v2/models/bench/ready"),
    Peer("litserve", _litserve, _base64, "/health"),
)
