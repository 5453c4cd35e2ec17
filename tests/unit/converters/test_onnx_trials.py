"""What INT8 in one layer alone does, on a graph with one layer that does not bear it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from covey_converters.backends import onnx_trials
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.deadline import OutOfTime
from covey_converters.errors import RecipeError
from covey_converters.heads import onnx_operators
from covey_converters.layers import Layer, layers
from covey_converters.samples import Samples

GENERATOR = np.random.default_rng(0)


def network(wide: float = 1.0) -> Any:
    """x [1, 16] -> even -> uneven -> last, matrices of 16 x 16 with Relu between; one channel out of `uneven` is so many times as wide as the
    others, which `last` makes good again."""
    matrices = {name: GENERATOR.normal(size=(16, 16)).astype(np.float32) / 4 for name in ("even", "uneven", "last")}
    matrices["uneven"][:, 3] *= wide
    matrices["last"][3] /= wide
    nodes, tensor = [], "x"
    for name in matrices:
        nodes.append(helper.make_node("MatMul", [tensor, f"{name}.weight"], [f"{name}.sums"], name))
        tensor = "y" if name == "last" else f"{name}.positive"
        nodes.append(
            helper.make_node("Identity" if name == "last" else "Relu", [f"{name}.sums"], [tensor], f"{name}.relu")
        )
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(values, f"{name}.weight") for name, values in matrices.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SAMPLES = Samples({"x": GENERATOR.normal(size=(12, 1, 16)).astype(np.float32)})


def test_the_layer_that_loses_most_is_found(tmp_path: Path) -> None:
    tried = {trial.layer.name: trial for trial in onnx_trials.trials(network(wide=300), SAMPLES, tmp_path)}
    assert list(tried) == ["even", "uneven", "last"]
    assert tried["uneven"].error > 3 * tried["even"].error > 0
    assert {trial.work for trial in tried.values()} == {256}
    assert tried["uneven"].layer.outputs == ("uneven.sums", "uneven.positive")


def test_a_graph_without_such_a_layer_has_none() -> None:
    errors = [trial.error for trial in onnx_trials._measured(network(), SAMPLES)]
    assert len(errors) == 3
    assert 0 < max(errors) < 0.05


def test_they_are_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the first recipe ran out of its time in the midst of them."""
    model = network()
    real = onnx_trials._rounded
    tried: list[str] = []

    def rounded(model: Any, layer: Layer, ranges: Any) -> Any:
        if len(tried) == 2 and layer.name not in tried:
            tried.append("")
            raise OutOfTime
        tried.append(layer.name)
        return real(model, layer, ranges)

    monkeypatch.setattr(onnx_trials, "_rounded", rounded)
    with pytest.raises(OutOfTime):
        onnx_trials.trials(model, SAMPLES, tmp_path)
    first = onnx_trials.trials(model, SAMPLES, tmp_path)
    assert onnx_trials.trials(model, SAMPLES, tmp_path) == first
    assert tried == ["even", "uneven", "", "last"]


def test_other_samples_are_other_trials(tmp_path: Path) -> None:
    model = network()
    for samples in (SAMPLES, SAMPLES.take(range(4))):
        onnx_trials.trials(model, samples, tmp_path)
    assert len(list(tmp_path.glob("trials-*.json"))) == 2


def test_a_rounded_layer_is_a_valid_graph_that_answers_nearly_the_same() -> None:
    model = network()
    ranges, shapes = onnx_trials._watched(model, SAMPLES)
    assert shapes["even.sums"] == (1, 16)
    [layer, *_] = layers(onnx_operators(model), {"MatMul"})
    rounded = onnx_trials._rounded(model, layer, ranges)
    checker.check_model(rounded)
    assert [node.op_type for node in rounded.graph.node].count("QuantizeLinear") == 3  # input, sums, activation
    sample = next(iter(SAMPLES))
    sessions = (OnnxRuntimeSession(one.SerializeToString(), threads=1) for one in (model, rounded))
    a, b = (session.run(sample)["y"].astype(np.float64) for session in sessions)
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_trials, "_SECONDS", -1.0)
    with pytest.raises(RecipeError, match="cannot be tried one by one"):
        list(onnx_trials._measured(network(), SAMPLES))
