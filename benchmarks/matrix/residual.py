"""The trained residual networks: weights from `train_digits.py`, made once and cached beside the packages; ONNX graphs around them.

Training takes the Python of toolchain `torch` (`covey-convert toolchain install torch --dir .matrix/toolchains`, or wherever toolchains lie).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matrix.graph import Graph
from benchmarks.matrix.packages import CACHE
from benchmarks.matrix.subject import Drawn, Floats, Purpose, Unavailable
from covey_converters import toolchain

SIDE = 32
_SCRIPT = Path(__file__).resolve().parent / "train_digits.py"
_TRAINED, _EPOCHS, _MORE = 900, 12, 5
# Where in the shuffled images each purpose begins; what is before them was trained on.
_BEGINS = {Purpose.CALIBRATION: _TRAINED, Purpose.EVALUATION: _TRAINED + 97, Purpose.HELD_OUT: _TRAINED + 497}


@functools.cache
def digits() -> tuple[NDArray[Any], NDArray[np.int64]]:
    """scikit-learn's 1,797 scanned digits, (n, 8, 8) from 0 to 16, and their labels, in one shuffled order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return bunch.images[order], bunch.target[order].astype(np.int64)


def part(count: int, purpose: Purpose) -> slice:
    """Which of the shuffled images serve a purpose; no image serves two, and none of them was trained on."""
    begin = _BEGINS[purpose]
    rest = min((other for other in _BEGINS.values() if other > begin), default=len(digits()[1]))
    return slice(begin, min(begin + count, rest))


def images(pixels: NDArray[Any]) -> Floats:
    """(n, 8, 8) -> (n, 1, 32, 32) from 0 to 1, bilinear."""
    at = np.clip((np.arange(SIDE) + 0.5) / 4 - 0.5, 0, 7)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, 7), at - low
    rows = pixels[:, low] * (1 - share)[:, np.newaxis] + pixels[:, high] * share[:, np.newaxis]
    both = rows[:, :, low] * (1 - share) + rows[:, :, high] * share
    found: Floats = (both[:, np.newaxis] / 16).astype(np.float32)
    return found


def draw(_packages: Path, count: int, purpose: Purpose) -> Drawn:
    pixels, labels = digits()
    chosen = part(count, purpose)
    return Drawn({"image": images(pixels[chosen])[:, np.newaxis]}, labels[chosen])


def trained() -> dict[str, Floats]:
    """Weights of the networks `dense`, `thin` and `sparse`; raises `Unavailable` without PyTorch."""
    settings = json.dumps({"trained": _TRAINED, "epochs": _EPOCHS, "more_epochs": _MORE})
    # Its meaning, not its text: a comment must not cost a training.
    script = ast.dump(ast.parse(_SCRIPT.read_text()))
    digest = hashlib.sha256((script + settings).encode()).hexdigest()[:16]
    out = CACHE / "trained" / f"residual-{digest}.npz"
    if not out.exists():
        _train(out)
    with np.load(out, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _train(out: Path) -> None:
    found = toolchain.find("torch", [CACHE / "toolchains", *toolchain.places(os.environ)])
    if found.folder is None:
        raise Unavailable("its training needs PyTorch: covey-convert toolchain install torch --dir .matrix/toolchains")
    out.parent.mkdir(parents=True, exist_ok=True)
    pixels, labels = digits()
    data, partial = out.with_name("digits.npz"), out.with_suffix(".partial")
    np.savez(data, images=images(pixels[:_TRAINED]), labels=labels[:_TRAINED])
    job = {"data": str(data), "out": str(partial), "epochs": _EPOCHS, "more_epochs": _MORE, "threads": 1}
    code, tail = toolchain.run_script(found.folder, _SCRIPT, [json.dumps(job)], seconds=1200)
    if code != 0:
        raise Unavailable(f"its training failed: {tail}")
    partial.replace(out)


def save(net: str, out: Path) -> None:
    """Input `image`, FP32 [1, 1, 32, 32]; output `scores`, FP32 [1, 10]."""
    weights = {name.removeprefix(f"{net}/"): value for name, value in trained().items() if name.startswith(f"{net}/")}
    graph = Graph()
    state = graph.node("Relu", _conv(graph, weights, "image", "stem"))
    for block in range(sum(name.endswith(".first.weight") for name in weights)):
        inner = graph.node("Relu", _conv(graph, weights, state, f"{block}.first", 2))
        short = _conv(graph, weights, state, f"{block}.short", 2)
        state = graph.node("Relu", graph.node("Add", _conv(graph, weights, inner, f"{block}.second"), short))
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", state), axis=1)
    head = graph.weight("head", weights["head.weight"].T)
    graph.node("Gemm", pooled, head, graph.weight("bias", weights["head.bias"]), name="scores")
    graph.save(out, f"residual-{net}", {"image": (1, 1, SIDE, SIDE)}, {"scores": (1, 10)})


def _conv(graph: Graph, weights: dict[str, Floats], state: str, name: str, stride: int = 1) -> str:
    kernel = weights[f"{name}.weight"]
    size = kernel.shape[-1]
    names = (graph.weight(f"{name}.weight", kernel), graph.weight(f"{name}.bias", weights[f"{name}.bias"]))
    return graph.node("Conv", state, *names, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4)
