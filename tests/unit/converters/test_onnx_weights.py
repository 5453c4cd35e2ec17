"""INT8 weights in an ONNX graph that is computed in FP32: the answers stay, the size does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.onnx_weights import quantise_weights, quantised


def recurrent(hidden: int = 32) -> Any:
    """sound [1, 1, 16], state [1, 1, hidden] -> LSTM -> MatMul -> scores [1, 1, 1, 64]."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((generator.standard_normal(shape) * 0.3).astype(np.float32), name)

    nodes = [
        helper.make_node(
            "LSTM", ["sound", "W", "R", "B", "", "state", "state"], ["a", "state_n"], name="lstm", hidden_size=hidden
        ),
        helper.make_node("MatMul", ["a", "M"], ["scores"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            helper.make_tensor_value_info("sound", TensorProto.FLOAT, [1, 1, 16]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 1, hidden]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 1, 64])],
        [
            weight("W", 1, 4 * hidden, 16),
            weight("R", 1, 4 * hidden, hidden),
            weight("B", 1, 8 * hidden),
            weight("M", hidden, 64),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_recurrent_graph_answers_as_before(tmp_path: Path) -> None:
    model = recurrent()
    onnx.save(model, str(tmp_path / "before.onnx"))
    # The bias is small and stays as it is.
    assert quantise_weights(model) == 3
    onnx.checker.check_model(model)
    onnx.save(model, str(tmp_path / "after.onnx"))
    generator = np.random.default_rng(1)
    inputs = {
        "sound": generator.standard_normal((1, 1, 16)).astype(np.float32),
        "state": generator.standard_normal((1, 1, 32)).astype(np.float32),
    }
    before, after = (
        OnnxRuntimeSession(tmp_path / f"{name}.onnx", threads=1).run(inputs)["scores"] for name in ("before", "after")
    )
    np.testing.assert_allclose(after.astype(float), before.astype(float), atol=0.02)
    assert (tmp_path / "after.onnx").stat().st_size < 0.4 * (tmp_path / "before.onnx").stat().st_size


def test_a_weight_that_two_nodes_share_is_replaced_once() -> None:
    model = recurrent()
    model.graph.node.append(helper.make_node("MatMul", ["state_n", "M"], ["other"], name="again"))
    assert quantise_weights(model) == 3


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_every_channel_has_a_scale_of_its_own(axis: int) -> None:
    weight = np.array([[1.0, 100.0], [0.0, -50.0]], np.float32)
    values, scales = quantised(weight, axis)
    np.testing.assert_allclose(values * scales, weight, atol=float(scales.max()) / 2)
    assert scales.size == 2


def test_a_channel_of_zeros_has_a_scale_of_one() -> None:
    values, scales = quantised(np.zeros((2, 3), np.float32), 0)
    assert not values.any()
    assert (scales == 1).all()
