"""The builds that the benchmark serves, made on the spot: ONNX graphs with fixed random weights, so that nothing is downloaded.

`network` is a stack of inverted bottlenecks as EfficientNet-Lite has them, about 10 ms on one core of a server; two seeds make two
builds whose answers cannot be taken for each other's. `light` computes next to nothing on the same input, so that what is measured
with it is everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.matrix.graph import Graph
from benchmarks.matrix.subject import Floats
from covey_contract.building import MANIFEST_FILE
from covey_contract.manifest import (
    BLOCK_BYTES,
    DataType,
    FileEntry,
    Manifest,
    Runtime,
    TensorSpec,
    Tolerance,
    block_count,
    build_digest,
)
from covey_contract.wire import encode

MODEL = "bench"
Shape = tuple[int, int, int, int]
SHAPE: Shape = (1, 3, 96, 96)  # FP32: 110,592 bytes
LARGE: Shape = (1, 3, 640, 640)  # what detectors are often fed with; FP32: 4,915,200 bytes
CLASSES = 100
BLOCKS, WIDTH, EXPANSION = 10, 64, 6
ENTRY = "model.onnx"


@dataclass(frozen=True)
class MadeBuild:
    """A verified build on disk, and what it answers to each of `inputs`, as the bare runtime says."""

    digest: str
    folder: Path
    expected: Floats  # (inputs, *shape of the output)

    @property
    def file(self) -> Path:
        return self.folder / ENTRY


def inputs(count: int = 4, shape: Shape = SHAPE) -> Floats:
    """(count, *shape)"""
    return np.random.default_rng(7).standard_normal((count, *shape), np.float32)


def network(seed: int, path: Path, shape: Shape) -> None:
    """Input `image`, FP32 of that shape; output `scores`, FP32 [1, CLASSES]."""
    draw = np.random.default_rng(seed)
    graph = Graph()

    def conv(
        state: str, inside: int, out: int, size: int, *, stride: int = 1, group: int = 1, bend: bool = True
    ) -> str:
        fan = inside // group * size * size
        kernel = (draw.standard_normal((out, inside // group, size, size)) * np.sqrt(2 / fan)).astype(np.float32)
        name = graph.weight(f"weight_{len(graph.weights)}", kernel)
        pad = size // 2
        done = graph.node(
            "Conv", state, name, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group
        )
        return graph.node("Clip", done, graph.number(0.0), graph.number(6.0)) if bend else done

    state = conv("image", 3, 32, 3, stride=2)
    state = conv(state, 32, WIDTH, 3, stride=2)
    wide = WIDTH * EXPANSION
    for _ in range(BLOCKS):
        inner = conv(state, WIDTH, wide, 1)
        inner = conv(inner, wide, wide, 3, group=wide)
        state = graph.node("Add", conv(inner, wide, WIDTH, 1, bend=False), state)
    flat = graph.node("Flatten", graph.node("GlobalAveragePool", state), axis=1)
    head = graph.weight("head", draw.standard_normal((WIDTH, CLASSES)).astype(np.float32))
    bias = graph.weight("bias", draw.standard_normal(CLASSES).astype(np.float32))
    graph.node("Gemm", flat, head, bias, name="scores")
    graph.save(path, "bench", {"image": shape}, {"scores": (1, CLASSES)})


def light(_: int, path: Path, shape: Shape) -> None:
    """Input as above; output `scores`, FP32 [1, 3]: the mean of each channel."""
    graph = Graph()
    graph.node("Flatten", graph.node("GlobalAveragePool", "image"), name="scores", axis=1)
    graph.save(path, "bench", {"image": shape}, {"scores": (1, 3)})


def make(
    root: Path, name: str, seed: int, draw: Callable[[int, Path, Shape], None] = network, shape: Shape = SHAPE
) -> MadeBuild:
    """A build in a folder of its own below `root`, with golden vectors as every real build has them."""
    folder = root / name
    folder.mkdir(parents=True)
    draw(seed, folder / ENTRY, shape)
    given = inputs(shape=shape)
    expected = answers(folder / ENTRY, given)
    np.savez(folder / "golden.npz", allow_pickle=False, **{"in/image": given[:2], "out/scores": expected[:2]})
    files = tuple(
        FileEntry(path=path.name, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (folder / ENTRY, folder / "golden.npz")
    )
    blocks = sum(block_count(file.size) for file in files)
    manifest = Manifest(
        model=MODEL,
        version=name,
        target="onnxruntime-fp32",
        runtime=Runtime.ONNXRUNTIME,
        precision="fp32",
        entry=ENTRY,
        files=files,
        table=FileEntry(path="blocks.bin", size=blocks * 32, sha256="0" * 64),
        block_size=BLOCK_BYTES,
        inputs=(TensorSpec(name="image", datatype=DataType.FP32, shape=shape),),
        outputs=(TensorSpec(name="scores", datatype=DataType.FP32, shape=expected.shape[1:]),),
        golden="golden.npz",
        tolerance={"scores": Tolerance(absolute=1e-2, relative=1e-3)},
    )
    data = encode(manifest)
    (folder / MANIFEST_FILE).write_bytes(data)
    return MadeBuild(build_digest(data), folder, expected)


def answers(model: Path, given: Floats) -> Floats:
    """What the bare runtime answers, as a runner is configured: (inputs, *shape of the output)."""
    ask = bare(model)
    return np.stack([ask(one) for one in given])


def bare(model: Path) -> Callable[[Floats], Floats]:
    """The runtime's own call, without anything of ours around it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def ask(image: Floats) -> Floats:
        scores: Floats = session.run(["scores"], {"image": image})[0]
        return scores

    return ask
