"""The graph that INT8 recipes start from, and how layers stay in float among INT8 ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from covey_converters.backend import Source
from covey_converters.errors import RecipeError

# Per-channel QDQ is invalid below opset 13: older graphs are brought to 17. Newer ones stay, for the conversion breaks some.
_QDQ_SINCE, _QDQ_OPSET = 13, 17


def quantisable(source: Source) -> Any:
    """The cleaned-up graph (an onnx.ModelProto) in an opset that has QDQ per channel, its shapes known and each node with a name of its own.

    Raises `RecipeError`.
    """
    import onnx

    model = onnx.load(str(source.start))
    if opset(source.start) < _QDQ_SINCE:
        try:
            model = onnx.version_converter.convert_version(model, _QDQ_OPSET)
        except Exception as error:  # noqa: BLE001  # the converter raises RuntimeError and its own kinds for what it cannot convert
            raise RecipeError(f"the graph cannot be brought to opset {_QDQ_OPSET}: {error}") from error
    model = onnx.shape_inference.infer_shapes(model)
    for node in model.graph.node:
        # What stays in float is told to the quantiser by name.
        node.name = node.name or node.output[0]
    return model


def opset(path: Path) -> int:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return max(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


# ONNX Runtime's optimiser makes INT8 of these, with one scale for all weights, where they stand between INT8 operators.
_REQUANTISED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_PASSED = frozenset({"Relu", "Clip"})
_LOWEST = "covey.lowest"


def hold_in_float(model: Any) -> int:
    """Keep ONNX Runtime from quantising on its own what a recipe left in float, in place; how many operators that are.

    Its optimiser (WeightBiasQuantization; seen in 1.31) takes a float operator with weights between DequantizeLinear and QuantizeLinear for one
    whose weights were forgotten. EfficientNet-Lite0's answers were 1.4 of their length away from the same file's, unoptimised. A Max that
    changes nothing stands in the way.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    held: set[str] = set()
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.input else None
        if (
            node.op_type in _REQUANTISED
            and node.input[1] in weights
            and maker is not None
            and maker.op_type == "DequantizeLinear"
        ):
            tensor, behind = node.output[0], takers.get(node.output[0], [])
            while len(behind) == 1 and behind[0].op_type in _PASSED:
                tensor, behind = behind[0].output[0], takers.get(behind[0].output[0], [])
            if len(behind) == 1 and behind[0].op_type == "QuantizeLinear":
                behind[0].input[0] = f"{tensor}.held"
                held.add(f"{tensor}.held")
    if not held:
        return 0
    nodes = []
    for node in graph.node:
        if node.input and (name := node.input[0]) in held:
            nodes.append(helper.make_node("Max", [name.removesuffix(".held"), _LOWEST], [name], name))
        nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), _LOWEST))
    return len(held)
