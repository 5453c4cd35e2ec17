"""A real gateway with real runners, and tiny ONNX models made on the spot."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_agent.gateway.control_api import (
    Answer,
    Collect,
    Collected,
    Done,
    GatewayStatus,
    GetStatus,
    Load,
    Loaded,
    ModelSlots,
    Request,
    Switch,
)
from covey_contract.building import MANIFEST_FILE
from covey_contract.drift import Reference
from covey_contract.manifest import (
    BLOCK_BYTES,
    DataType,
    FileEntry,
    Manifest,
    Runtime,
    TensorSpec,
    Tolerance,
    block_count,
    build_digest,
)
from covey_contract.messages import Probation
from covey_contract.wire import encode
from covey_hil.testing.waiting import until

MODEL = "scale"
SIZE = 8
INPUTS = (TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, SIZE)),)
OUTPUTS = (TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, SIZE)),)


def scale_model(factor: float, *, heavy: int = 0, root: bool = False, single: bool = False) -> bytes:
    """y = factor * x. `heavy` multiplies matrices of that size first, for time; with `root` negative x becomes NaN, with
    `single` the runtime fails on more than one row."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["scaled"])]
    constants = [numpy_helper.from_array(np.array(factor, np.float32), "factor")]
    last = "scaled"
    if heavy:
        constants.append(numpy_helper.from_array(np.eye(heavy, dtype=np.float32), "matrix"))
        constants.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
        nodes.append(helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0))
        nodes.append(helper.make_node("Add", ["matrix", "top"], ["shifted"]))  # depends on x: not folded away
        nodes.append(helper.make_node("MatMul", ["shifted", "shifted"], ["product"]))
        nodes.append(helper.make_node("ReduceMax", ["product"], ["peak"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["peak", "zero"], ["nothing"]))
        nodes.append(helper.make_node("Add", [last, "nothing"], ["slow"]))
        last = "slow"
    if root:
        nodes.append(helper.make_node("Sqrt", [last], ["root"]))
        nodes.append(helper.make_node("Mul", ["root", "root"], ["square"]))
        last = "square"
    if single:
        constants.append(numpy_helper.from_array(np.array([1, SIZE], np.int64), "one_row"))
        nodes.append(helper.make_node("Reshape", [last, "one_row"], ["row"]))
        last = "row"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def golden(factor: float) -> dict[str, np.ndarray[Any, Any]]:
    x = np.linspace(0.1, 2.0, 3 * SIZE, dtype=np.float32).reshape(3, 1, SIZE)
    return {"in/x": x, "out/y": x * np.float32(factor)}


class Build:
    """A build on disk."""

    def __init__(self, digest: str, folder: Path, version: str) -> None:
        self.digest = digest
        self.folder = folder
        self.version = version


def write_build(
    root: Path,
    content: bytes,
    *,
    version: str,
    vectors: dict[str, np.ndarray[Any, Any]] | None = None,
    runtime: Runtime = Runtime.ONNXRUNTIME,
    entry: str = "model.onnx",
    inputs: tuple[TensorSpec, ...] = INPUTS,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    options: dict[str, str | int | float | bool] | None = None,
    reference: Reference | None = None,
    max_batch: int = 1,
) -> Build:
    folder = root / f"build-{version}-{runtime}"
    folder.mkdir(parents=True)
    (folder / entry).write_bytes(content)
    if vectors is not None:
        np.savez(folder / "golden.npz", allow_pickle=False, **vectors)
    names = [entry] + (["golden.npz"] if vectors is not None else [])
    files = tuple(
        FileEntry(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name in names
        for data in [(folder / name).read_bytes()]
    )
    blocks = sum(block_count(file.size) for file in files)
    manifest = Manifest(
        model=MODEL,
        version=version,
        target=f"{runtime}-fp32",
        runtime=runtime,
        precision="fp32",
        entry=entry,
        files=files,
        table=FileEntry(path="blocks.bin", size=blocks * 32, sha256="0" * 64),
        block_size=BLOCK_BYTES,
        inputs=inputs,
        outputs=outputs,
        options=options or {},
        golden="golden.npz" if vectors is not None else None,
        tolerance={spec.name: Tolerance(absolute=1e-4) for spec in outputs},
        metadata={"unit": "test"},
        reference=reference,
        max_batch=max_batch,
    )
    data = encode(manifest)
    (folder / MANIFEST_FILE).write_bytes(data)
    return Build(build_digest(data), folder, version)


class Rig:
    """A gateway process, its control socket, and a folder for builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *options: str) -> None:
        with (self.folder / "gateway.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "covey_agent.gateway", "--run-dir", str(self.run_dir), "--port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        until(lambda: self._answers(), "the gateway listens")
        self.port = self.status().http_port

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            self.status()
        except OSError:
            return False
        return True

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def build(self, factor: float, version: str, **options: Any) -> Build:
        kept = {name: options.pop(name) for name in ("reference", "max_batch") if name in options}
        vectors = options.pop("vectors", golden(factor))
        return write_build(self.folder, scale_model(factor, **options), version=version, vectors=vectors, **kept)

    def order(self, request: Request) -> Answer:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.run_dir / "gateway.sock"))
            sock.sendall(msgspec.json.encode(request) + b"\n")
            with sock.makefile("rb") as lines:
                answer: Answer = msgspec.json.decode(lines.readline(), type=Answer)
                return answer

    def load(self, build: Build, **options: Any) -> Loaded:
        answer = self.order(Load(model=MODEL, build=build.digest, folder=str(build.folder), **options))
        assert isinstance(answer, Loaded), f"{answer}\n{self.log()}"
        return answer

    def switch(self, build: Build, probation: Probation | None = None) -> None:
        answer = self.order(Switch(model=MODEL, build=build.digest, probation=probation))
        assert answer == Done(), answer

    def serve(self, build: Build) -> None:
        self.load(build)
        self.switch(build)

    def status(self) -> GatewayStatus:
        answer = self.order(GetStatus())
        assert isinstance(answer, GatewayStatus)
        return answer

    def slots(self) -> ModelSlots:
        return next(model for model in self.status().models if model.model == MODEL)

    def collect(self) -> Collected:
        answer = self.order(Collect())
        assert isinstance(answer, Collected)
        return answer

    def pid_of(self, build: Build) -> int:
        return next(runner.pid for runner in self.slots().runners if runner.build == build.digest)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the gateway did not end\n{self.log()}") from None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    # Sockets' paths are limited to about 100 bytes: pytest's own folders are short enough.
    rig = Rig(tmp_path_factory.mktemp("g"))
    rig.start()
    yield rig
    rig.stop()
    assert "Traceback" not in rig.log(), rig.log()


@pytest.fixture
def make_build() -> Callable[..., Build]:
    return write_build


@pytest.fixture
def onnx_by_channel() -> bytes:
    """y = [1, 10, 100] * x along axis 1 of [1, 3, 4, 5]."""
    shape = [1, 3, 4, 5]
    factors = np.array([1, 10, 100], np.float32).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factors"], ["y"])],
        "channels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(factors, "factors")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
