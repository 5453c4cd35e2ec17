"""What INT8 in one layer alone does to a graph's answers, measured in ONNX Runtime: every layer in turn, all others in float.

How a tensor's own values suffer says little of that: a narrow branch may be rounded to nothing and not matter, and one rounded a little may
decide. The rounding is written into the graph (weights to 8 bits a channel, the layer's tensors to 256 levels of their range), so that what is
found holds for every runtime that computes in INT8. Bounded: a few samples, and so much processor time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from covey_converters.backend import Array
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.onnx_weights import quantised, weight_inputs
from covey_converters.columns import mean_error
from covey_converters.errors import RecipeError
from covey_converters.heads import ONNX_WEIGHTED, onnx_operators
from covey_converters.layers import Layer, Trial, layers, work
from covey_converters.samples import Samples

_SAMPLES = 8
_SECONDS = 60.0
_LEVELS = 255.0

Answers = list[dict[str, Array]]


def trials(model: Any, calibration: Samples, folder: Path) -> list[Trial]:
    """Of each layer of an onnx.ModelProto of opset 10 or newer; kept in `folder` for the next recipe and target. Raises `RecipeError`."""
    samples = calibration.spread(_SAMPLES)
    kept = folder / f"trials-{digest_of(model, samples)}.json"
    found = msgspec.json.decode(kept.read_bytes(), type=list[Trial]) if kept.exists() else []
    for trial in _measured(model, samples, {one.layer.name for one in found}):
        found.append(trial)
        # One by one: a recipe that runs out of its time leaves the next one less to do.
        kept.with_suffix(".partial").write_bytes(msgspec.json.encode(found))
        kept.with_suffix(".partial").replace(kept)
    if not found:
        raise RecipeError("the graph has no layers with weights of its own")
    return found


def _measured(model: Any, samples: Samples, known: Collection[str] = ()) -> Iterator[Trial]:
    """Of the layers that are not known yet."""
    began = time.process_time()  # a busy machine's clock says little of how large a graph is
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name or node.output[0]: node for node in model.graph.node}
    left = [layer for layer in layers(onnx_operators(model), ONNX_WEIGHTED) if layer.name not in known]
    left = [layer for layer in left if _place(nodes[layer.name], weights) is not None]
    if not left:
        return
    ranges, shapes = _watched(model, samples)
    wanted = _answers(model, samples)
    for layer in left:
        if time.process_time() - began > _SECONDS:
            raise RecipeError(f"its layers cannot be tried one by one in {_SECONDS:g} s of processor time")
        node = nodes[layer.name]
        multiplications = work(node.op_type, shapes[node.output[0]], weights[node.input[1]].dims)
        yield Trial(layer, _error(wanted, _answers(_rounded(model, layer, ranges), samples)), multiplications)


def _place(node: Any, weights: Collection[str]) -> int | None:
    """The axis of a node's weights that its channels are on; None where the graph does not hold them: two tensors multiplied, say."""
    return next((axis for position, axis in weight_inputs(node) if position == 1 and node.input[1] in weights), None)


def _watched(model: Any, samples: Samples) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[int, ...]]]:
    """Minimum and maximum, and the shape, of every float tensor that a node gives or the graph is given."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {output.name for output in watched.graph.output}
    names = dict.fromkeys(name for node in watched.graph.node for name in node.output if name and name not in there)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = OnnxRuntimeSession(watched.SerializeToString(), threads=1, optimise=False)
    ranges: dict[str, tuple[float, float]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for name, values in {**sample, **session.run(sample)}.items():
            if values.dtype == np.float32 and values.size:
                low, high = ranges.get(name, (0.0, 0.0))  # zero is always among the levels
                ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
            shapes[name] = values.shape
    return ranges, shapes


def _rounded(model: Any, layer: Layer, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """The graph with this layer in INT8, computed in float."""
    import onnx
    from onnx import numpy_helper

    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    graph = rounded.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    outputs = {name for name in layer.outputs if name in ranges}
    for node in graph.node:
        if (node.name or node.output[0]) == layer.name and (axis := _place(node, weights)) is not None:
            given, weight = node.input[:2]
            values, scales = quantised(numpy_helper.to_array(weights[weight]), axis)
            graph.initializer.append(numpy_helper.from_array(values * scales, f"{weight}.rounded"))
            node.input[1] = f"{weight}.rounded"
            if given in ranges:
                nodes += _levels(graph, given, f"{given}.rounded", ranges[given])
                node.input[0] = f"{given}.rounded"
        mine = [(position, name) for position, name in enumerate(node.output) if name in outputs]
        for position, name in mine:
            node.output[position] = f"{name}.float"
        nodes.append(node)
        for _, name in mine:
            nodes += _levels(graph, f"{name}.float", name, ranges[name])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return rounded


def _levels(graph: Any, name: str, rounded: str, limits: tuple[float, float]) -> list[Any]:
    """Round a tensor to 256 levels."""
    from onnx import helper, numpy_helper

    low, high = limits
    scale = max(high - low, 1e-30) / _LEVELS
    zero = int(np.clip(round(-low / scale), 0, _LEVELS))
    names = (f"{rounded}.scale", f"{rounded}.zero")
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scale, np.float32), names[0]),
            numpy_helper.from_array(np.array(zero, np.uint8), names[1]),
        ]
    )
    return [
        helper.make_node("QuantizeLinear", [name, *names], [f"{rounded}.levels"], f"{rounded}.quantise"),
        helper.make_node("DequantizeLinear", [f"{rounded}.levels", *names], [rounded], f"{rounded}.dequantise"),
    ]


def _answers(model: Any, samples: Samples) -> Answers:
    # Not the optimised graph: that would compute the layer in INT8, and by kernels that may overflow.
    session = OnnxRuntimeSession(model.SerializeToString(), threads=1, optimise=False)
    return [session.run(sample) for sample in samples]


def _error(wanted: Answers, got: Answers) -> float:
    """The mean over the outputs."""
    found = []
    for name in wanted[0]:
        a, b = ([answer[name] for answer in answers] for answers in (wanted, got))
        if len({one.shape for one in (*a, *b)}) == 1:
            found.append(mean_error(np.stack(a), np.stack(b)))
    return float(np.mean(found)) if found else 0.0


def digest_of(model: Any, samples: Samples) -> str:
    """What is found out about a graph on samples is kept by."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name, array in sorted(samples.arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
