"""Builds that the converters made for several rows, served: requests that wait are computed together, and each gets its own answer."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_agent.client import Client
from covey_contract.building import Outcome
from covey_converters import folder, toolchain
from covey_converters.isolation import build_isolated
from covey_converters.spec import BuildSpec, Limits
from tests.integration.gateway.conftest import Build, Rig

MODEL, MAX_BATCH, CALLERS, ROUNDS, WIDTH, TURNS = "scale", 4, 12, 4, 1536, 20
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]
NO_ONNX2TF = toolchain.find("onnx2tf", toolchain.places(os.environ)).folder is None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [n, 32] -> two wide layers, so that requests come while one is computed -> y [n, 32]."""
    generator = np.random.default_rng(0)
    sizes = {"first": (32, WIDTH), "second": (WIDTH, WIDTH), "third": (WIDTH, 32)}
    weights = {name: generator.normal(size=size).astype(np.float32) / size[0] ** 0.5 for name, size in sizes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "second"], ["c"], "two"),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("MatMul", ["d", "third"], ["y"], "three"),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    path = tmp_path_factory.mktemp("source") / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def inputs(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).random((1, 32)).astype(np.float32)


def answered(rig: Rig) -> list[np.ndarray[Any, Any]]:
    """Every caller asks several times, all at once; the last answer of each."""
    answers: list[Any] = [None] * CALLERS
    ready = threading.Barrier(CALLERS)

    def call(index: int) -> None:
        with Client(f"127.0.0.1:{rig.port}") as client:
            client.ready()
            ready.wait()
            for _ in range(ROUNDS):
                answers[index] = client.infer(MODEL, {"x": inputs(index)})["y"]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize(
    "target",
    [
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
        "openvino-int8",
        pytest.param("tflite-fp32", marks=pytest.mark.skipif(NO_ONNX2TF, reason="toolchain onnx2tf is not installed")),
    ],
)
def test_a_build_for_several_rows_answers_several_callers_at_once(
    rig: Rig, source: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "work").mkdir()
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.stack([inputs(index) for index in range(CALLERS)]))
    spec = BuildSpec(
        model=MODEL,
        version="1.0",
        target=target,
        source=str(source),
        out=str(tmp_path / "out"),
        work=str(tmp_path / "work"),
        calibration=str(samples),
        evaluation=str(samples),
        max_batch=MAX_BATCH,
        measure_seconds=0.05,
    )
    report = build_isolated(spec, Limits(seconds=150))
    assert report.outcome is Outcome.BUILT, f"{report.reason} {report.tries} {report.log_tail}"
    manifest = folder.read_manifest(tmp_path / "out")
    assert manifest.max_batch == MAX_BATCH, report.notes
    rig.serve(Build(folder.digest_of(tmp_path / "out"), tmp_path / "out", "1.0"))
    alone = _alone(rig)
    rig.collect()
    for _ in range(TURNS):  # on a machine that does other things as well, callers may miss one another
        together = answered(rig)
        (window,) = rig.collect().windows
        assert window.ok == CALLERS * ROUNDS
        assert sum(size * count for size, count in window.batches.items()) == window.ok
        if max(window.batches) > 1:
            break
    assert 1 < max(window.batches) <= MAX_BATCH
    for index in range(CALLERS):
        np.testing.assert_allclose(together[index], alone[index], atol=0.02 * float(np.abs(alone[index]).max()))
        others = [other for other in range(CALLERS) if other != index]
        nearest = min(float(np.abs(together[index] - alone[other]).max()) for other in others)
        assert float(np.abs(together[index] - alone[index]).max()) < nearest / 2


def _alone(rig: Rig) -> list[np.ndarray[Any, Any]]:
    with Client(f"127.0.0.1:{rig.port}") as client:
        client.ready()
        return [client.infer(MODEL, {"x": inputs(index)})["y"] for index in range(CALLERS)]
