"""Trains the demo's model and writes its three versions. Needs torch and onnx; run it as `python train.py` in this folder.

- 1.0: six epochs on the plain images.
- 1.1: sixty epochs on images shifted by up to 5 pixels: better.
- 1.2: 1.1's weights with test-time augmentation left in the exported graph: each image is read at 13 × 13 shifts of half a
  pixel and the answers are averaged. As right as 1.1 and many times slower: the kind of release that looks fine until devices run it.

About 10,000 weights in depthwise-separable convolutions. Training with one thread is fastest here and repeatable.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from covey_hil.digits.data import SIDE, Digits, load, model_path

CHANNELS = ((16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))  # in, out, stride of each block
REACH = 6  # in half pixels: 13 × 13 views
OPSET = 17


class DigitsNet(nn.Module):
    """[n, 1, 32, 32] -> logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        for width, out, stride in CHANNELS:
            layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, out, 1), nn.BatchNorm2d(out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images).mean(dim=(2, 3)))


def train(data: Digits, *, epochs: int, shift: int, seed: int) -> DigitsNet:
    torch.manual_seed(seed)
    net = DigitsNet()
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-3)
    steps = epochs * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=8e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            dx, dy = (int(torch.randint(-shift, shift + 1, ())) for _ in range(2))
            moved = torch.roll(images[batch], (dy, dx), dims=(2, 3))
            loss = nn.functional.cross_entropy(net(moved), labels[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def export(net: DigitsNet, path: Path, version: str, *, shifts: bool) -> None:
    """Write the network as ONNX with batch norms folded, so that the graph holds nothing but what is computed."""
    weights: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    value = "image"
    if shifts:
        value = _all_shifts(node, constant)
    layers = list(net.trunk)
    for index in range(0, len(layers), 3):
        convolution, norm = layers[index], layers[index + 1]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError("the trunk is made of convolution, batch norm, ReLU")
        kernel, bias = _fold(convolution, norm)
        name = f"conv{index // 3}"
        pad = int(convolution.padding[0])
        value = node(
            "Conv",
            [value, constant(f"{name}.weight", kernel), constant(f"{name}.bias", bias)],
            name,
            kernel_shape=list(convolution.kernel_size),
            strides=list(convolution.stride),
            pads=[pad] * 4,
            group=convolution.groups,
        )
        value = node("Relu", [value], f"relu{index // 3}")
    value = node("GlobalAveragePool", [value], "pool")
    value = node("Flatten", [value], "features", axis=1)
    head = constant("head.weight", net.head.weight.detach().numpy().T)
    last = "views" if shifts else "logits"
    value = node("Gemm", [value, head, constant("head.bias", net.head.bias.detach().numpy())], last)
    if shifts:
        node("ReduceMean", [value], "logits", axes=[0], keepdims=1)
    graph = helper.make_graph(
        nodes,
        f"digits-{version}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="covey"
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _all_shifts(node, constant) -> str:  # type: ignore[no-untyped-def]  # the two builders of `export`
    """One view of the image per shift, as a batch: one-hot kernels move the enlarged image, first down, then across."""
    size = 2 * REACH + 1
    one_hot = np.eye(size, dtype=np.float32)
    down = constant("shift.down", one_hot.reshape(size, 1, size, 1))
    across = constant("shift.across", np.tile(one_hot, (size, 1)).reshape(size * size, 1, 1, size))
    scales = constant("shift.scales", np.array([1, 1, 2, 2], np.float32))
    larger = node(
        "Resize",
        ["image", "", scales],
        "larger",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    moved = node(
        "Conv", [larger, down], "moved.down", kernel_shape=[size, 1], strides=[2, 1], pads=[REACH, 0, REACH, 0]
    )
    moved = node(
        "Conv", [moved, across], "moved", kernel_shape=[1, size], strides=[1, 2], pads=[0, REACH, 0, REACH], group=size
    )
    return str(node("Transpose", [moved], "batch", perm=[1, 0, 2, 3]))


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    bias = norm.bias.detach() + (convolution.bias.detach() - norm.running_mean) * scale
    return (convolution.weight.detach() * scale[:, None, None, None]).numpy(), bias.numpy()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    training, _ = load()
    first = train(training, epochs=6, shift=0, seed=1)
    export(first, model_path("1.0"), "1.0", shifts=False)
    better = train(training, epochs=60, shift=5, seed=3)
    export(better, model_path("1.1"), "1.1", shifts=False)
    export(better, model_path("1.2"), "1.2", shifts=True)


if __name__ == "__main__":
    main()
