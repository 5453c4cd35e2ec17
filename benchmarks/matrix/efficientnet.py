"""EfficientNet-Lite0 from the weights in a PyTorch file, which is read without PyTorch and without running anything in it.

The network: arXiv:1905.11946 without squeeze-and-excitation and with ReLU6, as TensorFlow's "lite" variants have it; padding is
TensorFlow's SAME, which is uneven where the stride is 2. Batch norms are folded into the convolutions, as exporters do.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matrix.graph import Graph
from benchmarks.matrix.subject import Floats

SIDE = 224
FEATURES = 1280
# Repeats, kernel, stride of the first, expansion, channels out.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_STEM = 32
_EPSILON = 1e-3
_PREAMBLES = 3  # magic number, protocol, sizes of C types


class _Tensors(pickle.Unpickler):
    """Knows dictionaries and tensors; every other name in the pickle is an error, so that nothing of it is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in {"FloatStorage", "LongStorage"}:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a file of weights")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1], pid[2]


def read_weights(path: Path) -> dict[str, Floats]:
    """The FP32 tensors of a file in PyTorch's format of before 1.6: pickles, then the storages in the order of their keys."""
    with path.open("rb") as file:
        for _ in range(_PREAMBLES):
            _Tensors(file).load()
        tensors = _Tensors(file).load()
        storages: dict[str, Floats] = {}
        kinds = {key: kind for (kind, key), *_ in tensors.values()}
        for key in _Tensors(file).load():
            count = int.from_bytes(file.read(8), "little")
            content = file.read(count * (4 if kinds[key] == "FloatStorage" else 8))
            if kinds[key] == "FloatStorage":
                storages[key] = np.frombuffer(content, "<f4")
    return {
        name: np.lib.stride_tricks.as_strided(storages[key][offset:], shape, [4 * step for step in strides])
        for name, ((_, key), offset, shape, strides) in tensors.items()
        if key in storages
    }


def save_features(weights: Mapping[str, Floats], out: Path) -> None:
    """Input `image`, FP32 [1, 3, 224, 224] from -1 to 1; output `features`, FP32 [1, 1280]."""
    graph = Graph()
    _trunk(graph, weights)
    graph.save(out, "efficientnet-lite0", {"image": (1, 3, SIDE, SIDE)}, {"features": (1, FEATURES)})


def save_classifier(weights: Mapping[str, Floats], head: Floats, bias: Floats, out: Path) -> None:
    """As above with a last layer on top: `head` (1280, classes); output `scores`, FP32 [1, classes]."""
    graph = Graph()
    graph.node("Gemm", _trunk(graph, weights), graph.weight("head", head), graph.weight("bias", bias), name="scores")
    graph.save(out, "efficientnet-lite0", {"image": (1, 3, SIDE, SIDE)}, {"scores": (1, len(bias))})


def _trunk(graph: Graph, weights: Mapping[str, Floats]) -> str:
    state = _relu6(graph, _conv(graph, weights, "image", "_conv_stem", "_bn0", stride=2, side=SIDE))
    side, width, number = SIDE // 2, _STEM, 0
    for repeats, _, stride, expansion, out in _STAGES:
        for index in range(repeats):
            step = stride if index == 0 else 1
            state = _block(
                graph, weights, state, number, expansion=expansion, stride=step, side=side, same=width == out
            )
            side, width, number = side // step, out, number + 1
    state = _relu6(graph, _conv(graph, weights, state, "_conv_head", "_bn1", stride=1, side=side))
    return graph.node("Flatten", graph.node("GlobalAveragePool", state), name="features", axis=1)


def _block(
    graph: Graph,
    weights: Mapping[str, Floats],
    state: str,
    number: int,
    *,
    expansion: int,
    stride: int,
    side: int,
    same: bool,
) -> str:
    name, inner = f"_blocks.{number}", state
    if expansion > 1:
        inner = _relu6(graph, _conv(graph, weights, inner, f"{name}._expand_conv", f"{name}._bn0", stride=1, side=side))
    inner = _relu6(
        graph, _conv(graph, weights, inner, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, side=side)
    )
    inner = _conv(graph, weights, inner, f"{name}._project_conv", f"{name}._bn2", stride=1, side=side // stride)
    return graph.node("Add", inner, state) if same and stride == 1 else inner


def _conv(
    graph: Graph, weights: Mapping[str, Floats], state: str, name: str, norm: str, *, stride: int, side: int
) -> str:
    kernel = weights[f"{name}.weight"]
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + np.float32(_EPSILON))
    shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    size = kernel.shape[-1]
    missing = max((-(-side // stride) - 1) * stride + size - side, 0)
    before = missing // 2
    return graph.node(
        "Conv",
        state,
        graph.weight(f"{name}.weight", (kernel * scale[:, np.newaxis, np.newaxis, np.newaxis]).astype(np.float32)),
        graph.weight(f"{name}.bias", shift.astype(np.float32)),
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[before, before, missing - before, missing - before],
        group=kernel.shape[0] if kernel.shape[1] == 1 else 1,
    )


def _relu6(graph: Graph, state: str) -> str:
    return graph.node("Clip", state, graph.number(0.0), graph.number(6.0))
