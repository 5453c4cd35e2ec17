"""Small real ONNX models for the converters' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_converters.prepare import prepare

MakeModel = Callable[..., Path]


def convolution(*, batch: int | str = 1, side: int | str = 8, opset: int = 17, weight: float = 1.0) -> Any:
    """image [batch, 1, side, side] -> Conv, Relu, GlobalAveragePool, Flatten -> scores [batch, 4]."""
    generator = np.random.default_rng(0)
    kernel = (generator.standard_normal((4, 1, 3, 3)) * weight).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["scores"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(scope="session")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the small model lies cleaned up already. Importing onnxslim takes longer than everything that most tests do,
    and each build process would import it again."""
    folder = tmp_path_factory.mktemp("cleaned")
    (folder / "small.onnx").write_bytes(convolution().SerializeToString())
    prepare(folder / "small.onnx", folder / "work")
    return folder / "work"


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    def make(name: str = "small.onnx", change: Callable[[Any], None] | None = None, **options: Any) -> Path:
        model = convolution(**options)
        if change is not None:
            change(model)
        path = tmp_path / name
        # Not onnx.save: it would move weights to where a bad model says that they are.
        path.write_bytes(model.SerializeToString())
        return path

    return make
