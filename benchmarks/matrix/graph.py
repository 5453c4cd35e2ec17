"""ONNX graphs written node by node, as an exporter would, for packages that hold weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matrix.subject import Array

OPSET = 17
Shapes = Mapping[str, tuple[int, ...]]


class Graph:
    """Nodes and weights as they are added. Every method gives back the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, array: Array) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [out], name=f"node_{out}", **attributes))
        return out

    def number(self, value: float) -> str:
        return self.weight(f"number_{len(self.weights)}", np.array(value, np.float32))

    def sizes(self, *values: int) -> str:
        return self.weight(f"sizes_{len(self.weights)}", np.array(values, np.int64))

    def save(self, path: Path, name: str, inputs: Shapes, outputs: Shapes, *, integers: bool = False) -> None:
        """Outputs are FP32, inputs too or INT64; raises what onnx raises for a graph that is none."""
        import onnx
        from onnx import TensorProto, helper

        kind = TensorProto.INT64 if integers else TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(one, kind, shape) for one, shape in inputs.items()],
            [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one, shape in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
