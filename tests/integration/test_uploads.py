"""A large model on its way to a real server that is killed, and by a command that is killed: what has come is not sent again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import time
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
from covey_hil.processes import Child, free_port, wait_for

BIN = Path(sys.executable).parent
MB = 1_000_000


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


def test_a_server_that_is_killed_in_the_middle(server: Server, source: Path) -> None:
    sent: list[int] = []
    with contextlib.closing(Transport(server.url, server.token, 15.0)) as transport, ThreadPoolExecutor(1) as pool:
        upload = pool.submit(Uploader(transport).send, source, sent.append)
        wait_for("enough bytes", lambda: server.come() > 8 * MB, 60, every_s=0.002)
        server.child.kill()
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
    first = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for("enough bytes", lambda: server.come() > 8 * MB, 60, every_s=0.002)
    first.kill()
    first.wait(10)
    time.sleep(0.5)  # what is on its way comes
    before = server.come()
    assert before > 8 * MB
    if before == source.stat().st_size:
        pytest.skip("it was through before it could be killed")
    began = (next((server.data / "uploads").glob("*")) / "data").stat().st_ino
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    data = list((server.data / "uploads").glob("*/data"))
    assert [one.stat().st_ino for one in data] == [began]  # the same upload, gone on with
    blob = server.data / "blobs" / hashlib.sha256(source.read_bytes()).hexdigest()[:2]
    assert next(blob.iterdir()).stat().st_ino == began  # and not copied either
