"""Every runtime that works on this machine behind the real gateway: swaps from one to another, layouts, priorities, ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from ai_edge_litert import schema_py_generated as schema

from covey_agent.gateway.control_api import Failure, Load
from covey_agent.runner import priority
from covey_contract.manifest import DataType, Runtime, TensorSpec
from covey_contract.messages import Probation
from covey_contract.reasons import Reason

SHAPE = (1, 3, 4, 5)
# Callers speak NCHW and the source's names, the TFLite build NHWC and its own.
CALLER = {
    "inputs": (TensorSpec(name="x", datatype=DataType.FP32, shape=SHAPE),),
    "outputs": (TensorSpec(name="y", datatype=DataType.FP32, shape=SHAPE),),
}
NHWC = {
    "inputs": (TensorSpec(name="x", datatype=DataType.FP32, shape=SHAPE, build_name="x_in", permutation=(0, 2, 3, 1)),),
    "outputs": (
        TensorSpec(name="y", datatype=DataType.FP32, shape=SHAPE, build_name="y_out", permutation=(0, 2, 3, 1)),
    ),
}
CHANNELS = np.array([1.0, 10.0, 100.0], np.float32)


def tflite_model(factors: np.ndarray[Any, Any], shape: tuple[int, ...]) -> bytes:
    """y_out = factors * x_in, the factors along the last axis."""
    buffers = [schema.BufferT(), schema.BufferT()]
    buffers[1].data = np.frombuffer(factors.astype("<f4").tobytes(), np.uint8)
    tensors = []
    for name, dimensions, buffer in (("x_in", shape, 0), ("factors", factors.shape, 1), ("y_out", shape, 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, np.array(dimensions, np.int32), buffer
        tensor.type = schema.TensorType.FLOAT32
        tensors.append(tensor)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MUL
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = np.array([0, 1], np.int32), np.array([2], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([2], np.int32)
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def by_channel(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x * CHANNELS.reshape(1, 3, 1, 1)


def vectors() -> dict[str, np.ndarray[Any, Any]]:
    x = np.arange(2 * 60, dtype=np.float32).reshape(2, *SHAPE)
    return {"in/x": x, "out/y": np.stack([by_channel(sample) for sample in x])}


def infer(rig: Any, x: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        result = client.infer("scale", [triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)])
        return result.get_response()["parameters"]["covey_target"], result.as_numpy("y")


def test_from_openvino_to_tflite(rig: Any, make_build: Any, onnx_by_channel: bytes) -> None:
    x = np.random.default_rng(7).random(SHAPE, dtype=np.float32)
    first = make_build(
        rig.folder,
        onnx_by_channel,
        version="1",
        vectors=vectors(),
        runtime=Runtime.OPENVINO,
        options={"INFERENCE_PRECISION_HINT": "f32"},
        **CALLER,
    )
    rig.serve(first)
    target, y = infer(rig, x)
    assert target == "openvino-fp32"
    np.testing.assert_allclose(y, by_channel(x), rtol=1e-5)
    assert first.folder.with_name(first.folder.name + ".cache").is_dir()

    second = make_build(
        rig.folder,
        tflite_model(CHANNELS, (1, 4, 5, 3)),
        version="2",
        entry="model.tflite",
        vectors=vectors(),
        runtime=Runtime.TFLITE,
        **NHWC,
    )
    rig.load(second)
    rig.switch(second, Probation())
    target, y = infer(rig, x)
    assert target == "tflite-fp32"
    assert y.shape == SHAPE
    np.testing.assert_allclose(y, by_channel(x), rtol=1e-6)
    assert rig.slots().reverted is None


def test_unusual_layout_that_is_wrong_fails_its_golden_check(rig: Any, make_build: Any) -> None:
    wrong = TensorSpec(name="x", datatype=DataType.FP32, shape=SHAPE, build_name="x_in", permutation=(0, 3, 2, 1))
    build = make_build(
        rig.folder,
        tflite_model(CHANNELS, (1, 5, 4, 3)),
        version="1",
        entry="model.tflite",
        vectors=vectors(),
        runtime=Runtime.TFLITE,
        inputs=(wrong,),
        outputs=NHWC["outputs"],
    )
    answer = rig.order(Load(model="scale", build=build.digest, folder=str(build.folder)))
    assert isinstance(answer, Failure)
    assert answer.reason is Reason.GOLDEN_MISMATCH


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_runtime_that_is_not_there(rig: Any, make_build: Any) -> None:
    build = make_build(rig.folder, b"engine", version="1", entry="model.engine", runtime=Runtime.TENSORRT)
    answer = rig.order(Load(model="scale", build=build.digest, folder=str(build.folder)))
    assert isinstance(answer, Failure)
    assert answer.reason is Reason.NO_RUNTIME
    assert "tensorrt" in answer.detail


@pytest.mark.gpu
def test_tensorrt_engine(rig: Any, make_build: Any, onnx_by_channel: bytes) -> None:
    trt = pytest.importorskip("tensorrt", reason="needs TensorRT and an NVIDIA GPU")
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # how its bindings say that there is no driver
        pytest.skip("needs an NVIDIA GPU")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    assert trt.OnnxParser(network, logger).parse(onnx_by_channel)
    engine = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    build = make_build(
        rig.folder,
        engine,
        version="1",
        entry="model.engine",
        vectors=vectors(),
        runtime=Runtime.TENSORRT,
        **CALLER,
    )
    rig.serve(build)
    x = np.random.default_rng(7).random(SHAPE, dtype=np.float32)
    np.testing.assert_allclose(infer(rig, x)[1], by_channel(x), rtol=1e-3)


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, Runtime.OPENVINO])
def test_a_build_loaded_in_the_background_serves_at_normal_priority(
    rig: Any, make_build: Any, onnx_by_channel: bytes, runtime: Runtime
) -> None:
    build = make_build(rig.folder, onnx_by_channel, version="1", vectors=vectors(), runtime=runtime, **CALLER)
    rig.load(build, background=True)
    rig.switch(build)
    threads = [int(task.name) for task in Path(f"/proc/{rig.pid_of(build)}/task").iterdir()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}


def test_a_candidate_is_idle_from_its_interpreters_start_to_its_being_ready(rig: Any) -> None:
    if not priority.may_return():
        pytest.skip("a process may not come back from idle priority here")
    first, second = rig.build(2.0, "1"), rig.build(3.0, "2", heavy=400)
    rig.serve(first)
    serving = rig.pid_of(first)
    seen: list[int] = []
    loading = threading.Thread(target=lambda: rig.load(second, background=True))
    loading.start()
    while loading.is_alive():
        for child in psutil.Process(rig.process.pid).children():
            with contextlib.suppress(OSError):  # it has ended
                words = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
                # Before it is Python it is the tool that makes it idle.
                if child.pid != serving and b"covey_agent.runner" in words and not words[0].endswith(b"chrt"):
                    seen.append(os.sched_getscheduler(child.pid))
        time.sleep(0.001)
    loading.join()
    assert seen[:10] == [os.SCHED_IDLE] * 10
    # Normal once it is ready, and from then on.
    assert seen == sorted(seen, reverse=True)
    threads = [int(task.name) for task in Path(f"/proc/{rig.pid_of(second)}/task").iterdir()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}


def test_runners_end_with_a_gateway_that_is_killed(rig: Any) -> None:
    build = rig.build(2.0, "1")
    rig.serve(build)
    pid = rig.pid_of(build)
    rig.process.kill()
    rig.process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split():
        assert time.monotonic() < deadline, "the runner is orphaned"
        time.sleep(0.01)


def test_a_terminal_that_hangs_up_ends_nothing(rig: Any) -> None:
    build = rig.build(2.0, "1")
    rig.serve(build)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(rig.pid_of(build), number)
    os.kill(rig.process.pid, signal.SIGHUP)
    x = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(infer(rig, x)[1], x * 2)


def test_control_survives_garbage(rig: Any) -> None:
    for garbage in (b"\xff\x00\n", b"{}\n", b'{"type":"Load"}\n', b"[" * 5000 + b"\n", b"no end"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(rig.run_dir / "gateway.sock"))
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65536)
            assert b"bad_message" in answer or (garbage == b"no end" and answer == b"")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(rig.run_dir / "gateway.sock"))
        sock.sendall(b"x" * ((1 << 20) + 10) + b"\n")
        assert b"bad_message" in sock.recv(65536)
    assert rig.status().pid == rig.process.pid
