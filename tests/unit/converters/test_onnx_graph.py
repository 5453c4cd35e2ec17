"""What a recipe leaves in float among INT8 operators stays in float, whatever ONNX Runtime's optimiser thinks of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from covey_converters.backends.onnx_graph import hold_in_float
from covey_converters.backends.onnx_session import OnnxRuntimeSession

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.random((1, 4, 8, 8)).astype(np.float32)


def between_int8(*activations: str, weights: str = "kernel") -> Any:
    """image -> Q, DQ -> a depthwise Conv in float, one of its channels very wide -> activations -> Q, DQ -> y."""
    kernel = GENERATOR.normal(size=(4, 1, 3, 3)).astype(np.float32)
    kernel[1] *= 1000
    scales = {"scale": 1 / 255, "wide": 0.05}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "scale", "zero"], ["a"], "q"),
        node("DequantizeLinear", ["a", "scale", "zero"], ["b"], "dq"),
        node("Conv", ["b", weights, "bias"], ["c"], "conv", group=4, pads=[1, 1, 1, 1]),
    ]
    if weights != "kernel":
        nodes.insert(0, node("Identity", ["kernel"], [weights], "weights"))
    last = "c"
    for index, kind in enumerate(activations):
        nodes.append(node(kind, [last], [f"act{index}"], f"act{index}"))
        last = f"act{index}"
    nodes += [
        node("QuantizeLinear", [last, "wide", "middle"], ["d"], "q2"),
        node("DequantizeLinear", ["d", "wide", "middle"], ["e"], "dq2"),
        node("ReduceMax", ["e"], ["y"], "max", axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "held",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
            *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in scales.items()),
            numpy_helper.from_array(np.array(0, np.uint8), "zero"),
            numpy_helper.from_array(np.array(128, np.uint8), "middle"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def answer(model: Any, *, optimise: bool) -> Any:
    session = OnnxRuntimeSession(model.SerializeToString(), threads=1, optimise=optimise)
    return session.run({"image": IMAGE})["y"]


@pytest.mark.parametrize("activations", [(), ("Relu",)])
def test_it_answers_optimised_what_the_file_says(activations: tuple[str, ...]) -> None:
    model = between_int8(*activations)
    exact = answer(model, optimise=False)
    assert hold_in_float(model) == 1
    checker.check_model(model)
    np.testing.assert_array_equal(answer(model, optimise=False), exact)
    # Narrow channels beside a wide one: with one scale for all weights theirs would be zero.
    assert np.count_nonzero(exact) == 4
    np.testing.assert_allclose(answer(model, optimise=True), exact, atol=0.11)
    assert hold_in_float(model) == 0  # once is enough


def test_what_is_not_quantised_on_its_own_is_left_alone() -> None:
    """Another operator between, or weights that are none of the file's: nothing to hold."""
    for model in (between_int8("Sigmoid"), between_int8(weights="given")):
        before = model.SerializeToString()
        assert hold_in_float(model) == 0
        assert model.SerializeToString() == before
