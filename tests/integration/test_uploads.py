"""A large model on its way to a real server that is killed, and by a command that is killed: what has come is not sent again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_client.api import Client
from covey_client.errors import ClientError
from covey_client.transport import Transport
from covey_client.uploading import Uploader
from covey_hil.processes import Child, wait_for
from covey_server.fleet.ports import free_port

BIN = Path(sys.executable).parent
MB = 1_000_000
HELD_AT = 20 * MB  # how far an upload gets before it is held, so that no machine is fast enough to be through by then


class Server:
    """On a port of its own that it keeps through restarts."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.url = f"http://127.0.0.1:{free_port()}"
        words = [
            str(BIN / "covey-server"),
            "run",
            "--data",
            str(self.data),
            "--listen",
            self.url.removeprefix("http://"),
        ]
        self.child = Child("server", [*words, "--local-worker", "false"], folder / "server.log")

    def start(self) -> None:
        self.child.start()
        wait_for("the server", self._ready, 60)

    def _ready(self) -> bool:
        self.child.check()
        try:
            with self.client() as client:
                client.health()
        except (ClientError, OSError):
            return False
        return True

    @property
    def token(self) -> str:
        return (self.data / "admin-token").read_text().strip()

    def client(self) -> Client:
        return Client(self.url, self.token)

    def come(self) -> int:
        """Bytes of the uploads that lie there."""
        return sum(path.stat().st_size for path in (self.data / "uploads").glob("*/data"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.child.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A real graph with 60 MB of weights."""
    path = tmp_path / "large.onnx"
    weights = np.random.default_rng(1).standard_normal((3750, 4000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3750])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4000])],
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    assert path.stat().st_size >= 60 * MB
    return path


@contextlib.contextmanager
def held(url: str, limit: int) -> Iterator[str]:
    """An address that leads to the server's. So many bytes come through to it; then every connection is held until the end."""
    left, lock, over = limit, threading.Lock(), threading.Event()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def forward(source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        nonlocal left
        with contextlib.suppress(OSError):  # a side has ended
            while data := source.recv(1 << 16):
                if counted:
                    with lock:
                        data, left = data[:left], left - min(left, len(data))
                sink.sendall(data)
                if counted and left == 0:
                    over.wait(120)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                connections.extend((near, far))
                pairs = ((near, far, True), (far, near, False))
                for source, sink, counted in pairs:
                    thread = threading.Thread(target=forward, args=(source, sink), kwargs={"counted": counted})
                    threads.append(thread)
                    thread.start()

    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for one in connections:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads[1:]:
                thread.join()
            for one in connections:
                one.close()


def test_a_server_that_is_killed_in_the_middle(server: Server, source: Path) -> None:
    sent: list[int] = []
    killed = threading.Event()

    def progress(position: int) -> None:
        sent.append(position)
        if position > HELD_AT:
            assert killed.wait(60)

    with contextlib.closing(Transport(server.url, server.token, 15.0)) as transport, ThreadPoolExecutor(1) as pool:
        upload = pool.submit(Uploader(transport).send, source, progress)
        wait_for("enough bytes", lambda: server.come() > 8 * MB, 60, every_s=0.002)
        server.child.kill()
        assert server.come() < source.stat().st_size
        killed.set()
        server.start()
        assert upload.result(120) is not None
    assert server.come() == source.stat().st_size
    back = [after for before, after in itertools.pairwise(sent) if after < before]
    assert len(back) <= 1  # once, to where the server stood
    assert all(position > 8 * MB for position in back)
    with server.client() as client:
        version = client.push_version("large", "1.0", source, targets=["onnxruntime-fp32"])
    assert version["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_command_that_is_killed_in_the_middle(server: Server, source: Path, tmp_path: Path) -> None:
    words = [str(BIN / "covey"), "model", "push", "large", "1.0", str(source), "--target", "onnxruntime-fp32"]
    environment = {**os.environ, "COVEY_SERVER": server.url, "COVEY_TOKEN": server.token, "HOME": str(tmp_path)}
    with held(server.url, HELD_AT) as url:
        first = subprocess.Popen(
            words,
            env={**environment, "COVEY_SERVER": url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("enough bytes", lambda: server.come() > 8 * MB, 60)
        assert first.poll() is None
        first.kill()
        first.wait(10)
    assert server.come() <= HELD_AT
    began = (next((server.data / "uploads").glob("*")) / "data").stat().st_ino
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    data = list((server.data / "uploads").glob("*/data"))
    assert [one.stat().st_ino for one in data] == [began]  # the same upload, gone on with
    blob = server.data / "blobs" / hashlib.sha256(source.read_bytes()).hexdigest()[:2]
    assert next(blob.iterdir()).stat().st_ino == began  # and not copied either
