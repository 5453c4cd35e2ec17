"""INT8 weights for graphs that do not bear INT8 arithmetic, recurrent ones above all: a quarter of the size, computed in FP32.

Each large weight becomes an INT8 tensor, a Cast and a Mul with its scales. ONNX Runtime folds the two when it loads the build, so that
inference costs what it costs in FP32; a DequantizeLinear in their place it would run again on each inference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smaller ones weigh next to nothing, and biases and norms among them are the sensitive ones.
SMALLEST = 1024
# The input that holds weights and the axis of its channels, by operator; a table of embeddings has a scale per row.
_WEIGHTS = {
    "Conv": ((1, 0),), "ConvTranspose": ((1, 1),), "MatMul": ((1, -1),), "Gemm": ((1, -1),), "Gather": ((0, 0),),
    "LSTM": ((1, 1), (2, 1)), "GRU": ((1, 1), (2, 1)), "RNN": ((1, 1), (2, 1)),
}  # fmt: skip
_LEVELS = 127.0


def quantise_weights(model: Any) -> int:
    """Replace the weights of an onnx.ModelProto, in place; how many there were."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    large = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= SMALLEST
    }
    added: list[Any] = []
    done: set[str] = set()
    for node in graph.node:
        for position, axis in weight_inputs(node):
            name = node.input[position] if position < len(node.input) else ""
            if name in done or name not in large:
                continue
            values, scales = quantised(numpy_helper.to_array(large[name]), axis)
            graph.initializer.remove(large[name])
            graph.initializer.extend(
                [numpy_helper.from_array(values, f"{name}.int8"), numpy_helper.from_array(scales, f"{name}.scale")]
            )
            added += [
                helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], f"{name}.cast", to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], f"{name}.scaled"),
            ]
            done.add(name)
    # Weights are made before anything uses them.
    for index, node in enumerate(added):
        graph.node.insert(index, node)
    return len(done)


def weight_inputs(node: Any) -> tuple[tuple[int, int], ...]:
    """The inputs of a node that hold weights, each with the axis of its channels."""
    if node.op_type == "Gemm" and any(entry.name == "transB" and entry.i for entry in node.attribute):
        return ((1, 0),)
    return _WEIGHTS.get(node.op_type, ())


def quantised(weight: NDArray[np.generic], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric INT8 values and their scales, one for each index of `axis`, which broadcast over the weight."""
    floats = weight.astype(np.float32)
    others = tuple(index for index in range(floats.ndim) if index != axis % floats.ndim)
    largest = np.abs(floats).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    return np.rint(floats / scales).astype(np.int8), scales
