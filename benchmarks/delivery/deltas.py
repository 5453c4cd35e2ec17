"""How many bytes a new version costs a device that has the one before, on models that are really trained.

A network of 1.2 million weights reads scikit-learn's digits. Its successor is made three ways: only the head is trained on, all weights
are trained on at a small rate, or all is trained anew. Each pair is written as ONNX in FP32, FP16 and INT8 (weights by channel), and
counted: the whole build; the blocks of 64 KiB that the device does not have; what it fetches with a delta, by the server's own maker and
applied by the agent's own code; the whole build by `zstd -19`; the difference by `zstd -19 --patch-from`. The last two are for
comparison: nothing here uses them.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from covey_agent.delta import made_blocks
from covey_agent.store import Store
from covey_contract.delta import MAGIC
from covey_contract.manifest import BLOCK_BYTES, DataType, FileEntry, Manifest, Runtime, TensorSpec, block_count
from covey_server.deltas.making import make
from covey_server.registry.blobs import BlobStore

Weights = list[NDArray[np.float32]]  # weight (in, out) and bias (out) of each layer
PRECISIONS = ("fp32", "fp16", "int8")
_WIDTHS = (64, 1024, 1024, 10)
_BATCH = 64
_EPOCHS, _MORE_EPOCHS = 15, 3
_RATE, _SMALL_RATE = 0.05, 0.0005


def table(folder: Path) -> list[dict[str, Any]]:
    """One row for each way and precision; bytes."""
    images, labels = _digits()
    half = len(labels) // 2
    old = train(fresh(1), images[:half], labels[:half], _RATE, _EPOCHS)
    successors = {
        "head only": train(old, images, labels, _SMALL_RATE, _MORE_EPOCHS, first=4),
        "fine-tuned": train(old, images, labels, _SMALL_RATE, _MORE_EPOCHS),
        "trained anew": train(fresh(2), images, labels, _RATE, _EPOCHS),
    }
    rows = []
    for way, new in successors.items():
        accuracy = round(float((scores(new, images).argmax(axis=1) == labels).mean()), 4)
        for precision in PRECISIONS:
            before, after = folder / "old.onnx", folder / "new.onnx"
            write(before, old, precision)
            write(after, new, precision)
            rows.append({"way": way, "precision": precision, "accuracy": accuracy, **compared(before, after)})
    return rows


def compared(old: Path, new: Path) -> dict[str, Any]:
    """Bytes of each way from one file to the other; None where zstd is not installed."""
    here = set(_digests(old.read_bytes()))
    data = new.read_bytes()
    fetched, made_s = _with_delta(old, new)
    missing = sum(
        len(data[at : at + BLOCK_BYTES])
        for at, digest in zip(range(0, len(data), BLOCK_BYTES), _digests(data), strict=True)
        if digest not in here
    )
    return {
        "full": len(data),
        "blocks": missing,
        "fetched": fetched,
        "made_s": made_s,
        "zstd": _zstd(new),
        "zstd_patch": _zstd(new, f"--patch-from={old}"),
    }


def _with_delta(old: Path, new: Path) -> tuple[int, float]:
    """Bytes that a device fetches that is offered a delta, and the processor time that the server takes to make it, in seconds. Fails
    if what the agent makes of it is not the new file's own blocks."""
    with tempfile.TemporaryDirectory(prefix="covey-deltas-") as name:
        blobs, store = BlobStore(Path(name) / "blobs"), Store(Path(name) / "store")
        store.prepare()
        store.blob(hashlib.sha256(old.read_bytes()).hexdigest()).write_bytes(old.read_bytes())
        before, after = _manifest(blobs, old), _manifest(blobs, new)
        began = time.process_time()
        with (Path(name) / "delta").open("wb") as out:
            make(blobs, before, after, out)
        took = time.process_time() - began
        blocks = {
            index: new.read_bytes()[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            for index in range(block_count(new.stat().st_size))
        }
        here = set(_digests(old.read_bytes()))
        left = {index: data for index, data in blocks.items() if hashlib.sha256(data).digest() not in here}
        for _, index, data in made_blocks(Path(name) / "delta", store):
            assert blocks[index] == data
            left.pop(index, None)
        size = (Path(name) / "delta").stat().st_size
        useful = size if size > len(MAGIC) else 0  # one that gives nothing is not offered
        return useful + sum(len(data) for data in left.values()), round(took, 2)


def _manifest(blobs: BlobStore, path: Path) -> Manifest:
    data = path.read_bytes()
    entries = []
    for name, content in (("model.onnx", data), ("blocks.bin", b"".join(_digests(data)))):
        sha256, size = blobs.put(io.BytesIO(content), 1 << 30)
        entries.append(FileEntry(path=name, size=size, sha256=sha256))
    tensor = (TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, _WIDTHS[0])),)
    return Manifest(
        model="digits",
        version="1",
        target="onnxruntime-fp32",
        runtime=Runtime.ONNXRUNTIME,
        precision="fp32",
        entry="model.onnx",
        files=(entries[0],),
        table=entries[1],
        inputs=tensor,
        outputs=tensor,
    )


def fresh(seed: int) -> Weights:
    draw = np.random.default_rng(seed)
    made: Weights = []
    for width, out in zip(_WIDTHS, _WIDTHS[1:], strict=False):
        made.append((draw.standard_normal((width, out)) * np.sqrt(2 / width)).astype(np.float32))
        made.append(np.zeros(out, np.float32))
    return made


def train(
    weights: Weights, images: NDArray[np.float32], labels: NDArray[np.int64], rate: float, epochs: int, first: int = 0
) -> Weights:
    """Plain gradient descent with momentum; arrays before `first` stay as they are."""
    weights = [array.copy() for array in weights]
    moving = [np.zeros_like(array) for array in weights]
    draw = np.random.default_rng(0)
    for _ in range(epochs):
        order = draw.permutation(len(labels))
        for at in range(0, len(order), _BATCH):
            batch = order[at : at + _BATCH]
            for number, gradient in enumerate(_gradients(weights, images[batch], labels[batch])):
                if number >= first:
                    moving[number] = 0.9 * moving[number] - rate * gradient
                    weights[number] += moving[number]
    return weights


def scores(weights: Weights, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return _layers(weights, images)[-1]


def write(path: Path, weights: Weights, precision: str) -> None:
    """The network as ONNX: (n, 64) -> scores (n, 10)."""
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    plain = np.float16 if precision == "fp16" else np.float32
    nodes, constants, last = [], [], "x"
    for layer in range(len(weights) // 2):
        weight, bias = weights[2 * layer], weights[2 * layer + 1]
        if precision == "int8":
            scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
            constants += [
                numpy_helper.from_array(np.round(weight / scale).astype(np.int8), f"q{layer}"),
                numpy_helper.from_array(scale, f"s{layer}"),
                numpy_helper.from_array(np.zeros(len(scale), np.int8), f"z{layer}"),
            ]
            names = [f"q{layer}", f"s{layer}", f"z{layer}"]
            nodes.append(helper.make_node("DequantizeLinear", names, [f"w{layer}"], axis=1))
        else:
            constants.append(numpy_helper.from_array(weight.astype(plain), f"w{layer}"))
        constants.append(numpy_helper.from_array(bias.astype(plain), f"b{layer}"))
        end = layer == len(weights) // 2 - 1
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], ["y" if end else f"h{layer}"]))
        last = f"h{layer}"
        if not end:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", kind, ["n", _WIDTHS[0]])],
        [helper.make_tensor_value_info("y", kind, ["n", _WIDTHS[-1]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)


def _layers(weights: Weights, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What each layer gives, the images first."""
    found = [images]
    for layer in range(0, len(weights), 2):
        state = found[-1] @ weights[layer] + weights[layer + 1]
        found.append(np.maximum(state, 0) if layer + 2 < len(weights) else state)
    return found


def _gradients(weights: Weights, images: NDArray[np.float32], labels: NDArray[np.int64]) -> Weights:
    """Of the mean cross-entropy."""
    states = _layers(weights, images)
    raised = np.exp(states[-1] - states[-1].max(axis=1, keepdims=True))
    error = raised / raised.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    found: Weights = []
    for layer in range(len(weights) - 2, -1, -2):
        before = states[layer // 2]
        found = [before.T @ error, error.sum(axis=0), *found]
        if layer:
            error = (error @ weights[layer].T) * (before > 0)
    return found


def _digests(data: bytes) -> list[bytes]:
    return [hashlib.sha256(data[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)]


def _zstd(path: Path, *words: str) -> int | None:
    program = shutil.which("zstd")
    if program is None:
        return None
    done = subprocess.run([program, "-q", "-19", "--long=27", *words, "-c", str(path)], capture_output=True, check=True)
    return len(done.stdout)
