"""Trains a residual network on digits, and two pruned ones made of it. Run by the Python of toolchain `torch`: JOB (JSON) as its argument.

The network is of the kind that MLPerf Tiny classifies images with (residual blocks of 3x3 convolutions on 32x32 pixels), wider:
1.2 million weights. `thin` keeps, inside each block, the half of the channels whose filters have the largest L1 norm (arXiv:1608.08710),
and is trained on; `sparse` keeps of every four neighbouring weights the two largest (2:4) and is trained on with the others at zero.

Reads `images` (n, 1, 32, 32) and `labels` of an .npz; writes weights with batch norms folded, `NET/LAYER.weight|bias`, to another.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from torch import nn

WIDTHS = (64, 128, 256)
BATCH = 64
RATE = 3e-3


class Block(nn.Module):  # type: ignore[misc]  # PyTorch is in an environment of its own
    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(width, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.second, self.second_norm = nn.Conv2d(inner, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short, self.short_norm = nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first_norm(self.first(state)))
        return torch.relu(self.second_norm(self.second(inner)) + self.short_norm(self.short(state)))


class Network(nn.Module):  # type: ignore[misc]  # as above
    """(n, 1, 32, 32) -> scores (n, 10). `inner`: channels inside each block."""

    def __init__(self, inner: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0])
        widths = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.ModuleList(Block(widths[i], inner[i], widths[i + 1], 2) for i in range(len(WIDTHS)))
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        state = torch.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            state = block(state)
        return self.head(state.mean(dim=(2, 3)))


def train(
    net: Network, images: torch.Tensor, labels: torch.Tensor, epochs: int, masks: dict[str, torch.Tensor]
) -> None:
    """`masks`: 0 where a weight stays zero, by the parameter's name."""
    steps = epochs * -(-len(labels) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            dx, dy = (int(torch.randint(-3, 4, ())) for _ in range(2))
            moved = torch.roll(images[batch], (dy, dx), dims=(2, 3))
            loss = nn.functional.cross_entropy(net(moved), labels[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    if name in masks:
                        parameter.mul_(masks[name])
    net.eval()


def thinned(net: Network) -> Network:
    """Half of the channels inside each block, those with the largest filters."""
    thin = Network(tuple(width // 2 for width in WIDTHS))
    theirs = net.state_dict()
    for name, value in thin.state_dict().items():
        if name.startswith("blocks.") and value.shape != theirs[name].shape:
            block = net.blocks[int(name.split(".")[1])]
            norms = block.first.weight.abs().sum(dim=(1, 2, 3))
            kept = norms.argsort(descending=True)[: len(norms) // 2].sort().values
            axis = 1 if name.endswith("second.weight") else 0
            value.copy_(theirs[name].index_select(axis, kept))
        else:
            value.copy_(theirs[name])
    return thin


def two_of_four(net: Network) -> dict[str, torch.Tensor]:
    """Masks of the 3x3 kernels: along the channels in, the two largest of every four."""
    masks: dict[str, torch.Tensor] = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4 and parameter.shape[1] % 4 == 0 and parameter.shape[2] == 3:
            fours = parameter.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4))
            best = fours.topk(2, dim=-1).indices
            masks[name] = torch.zeros_like(fours).scatter_(-1, best, 1.0).flatten(-2).movedim(-1, 1)
    return masks


def folded(net: Network, name: str) -> dict[str, np.ndarray]:
    found = {f"{name}/head.weight": net.head.weight, f"{name}/head.bias": net.head.bias}
    layers = [("stem", net.stem, net.stem_norm)]
    for index, block in enumerate(net.blocks):
        layers += [
            (f"{index}.{part}", getattr(block, part), getattr(block, f"{part}_norm"))
            for part in ("first", "second", "short")
        ]
    for layer, conv, norm in layers:
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        found[f"{name}/{layer}.weight"] = conv.weight * scale[:, None, None, None]
        found[f"{name}/{layer}.bias"] = norm.bias - norm.running_mean * scale
    return {key: value.detach().numpy() for key, value in found.items()}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(7)
    with np.load(job["data"]) as data:
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    dense = Network(WIDTHS)
    train(dense, images, labels, job["epochs"], {})
    thin = thinned(dense)
    train(thin, images, labels, job["more_epochs"], {})
    sparse = Network(WIDTHS)
    sparse.load_state_dict(dense.state_dict())
    train(sparse, images, labels, job["more_epochs"], two_of_four(dense))
    found = folded(dense, "dense") | folded(thin, "thin") | folded(sparse, "sparse")
    with open(job["out"], "wb") as file:  # noqa: PTH123  # this script stands alone
        np.savez(file, **found)  # type: ignore[arg-type]  # its stub knows no names of arrays


if __name__ == "__main__":
    main()
