"""The layers of a graph, what each costs in float, and which ones to leave in float.

A layer is an operator with weights and what follows it up to the next ones: a convolution with its activation. What INT8 in one layer alone
does to the answers is measured (`backends.onnx_trials`); here it is weighed against the layer's share of the work, because a layer that stays in
float costs its time. Pure.

    image -> Conv -> Relu -> Conv -> Add -> out         layers: Conv, Relu; Conv, Add
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from covey_converters.heads import Operator

# How much of the work may stay in float, by the recipes that measure.
_SHARES = (0.1, 0.2, 0.35, 0.5)


def recipes(static: str) -> dict[str, float]:
    """Names of the recipes that measure, made of that of a runtime's plain one, with the share of the work that each leaves in float."""
    return {f"{static}, head and costliest layers in float, {share:.0%} of the work": share for share in _SHARES}


@dataclass(frozen=True)
class Layer:
    """`operators`: the one with weights first, then those behind it, in the graph's order."""

    operators: tuple[Operator, ...]

    @property
    def name(self) -> str:
        return self.operators[0].name

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every tensor that the layer makes."""
        return tuple(tensor for operator in self.operators for tensor in operator.outputs if tensor)


@dataclass(frozen=True)
class Trial:
    """What was found out of a layer: the answers' error with this layer alone in INT8, and its work, in multiplications."""

    layer: Layer
    error: float
    work: int


def layers(operators: Sequence[Operator], weighted: Collection[str]) -> list[Layer]:
    """In the graph's order. An operator that takes from two layers is of the later one; what comes before all weights is of none."""
    found: dict[int, list[Operator]] = {}
    of_tensor: dict[str, int] = {}
    for index, operator in enumerate(operators):
        own = (
            index
            if operator.kind in weighted
            else max((of_tensor.get(name, -1) for name in operator.inputs), default=-1)
        )
        if own < 0:
            continue
        found.setdefault(own, []).append(operator)
        of_tensor |= dict.fromkeys(operator.outputs, own)
    return [Layer(tuple(found[index])) for index in sorted(found)]


def work(kind: str, output: Sequence[int], weight: Sequence[int]) -> int:
    """Multiplications of an operator, by the shapes of what it gives and of its weights.

    >>> work("Conv", (1, 16, 8, 8), (16, 3, 3, 3))
    27648
    >>> work("Gemm", (1, 10), (64, 10))
    640
    """
    if kind in {
        "Conv",
        "ConvTranspose",
    }:  # of the latter more than there are: each of its inputs is multiplied, which are fewer
        return math.prod(output) * math.prod(weight[1:])
    return math.prod(weight) * math.prod(output[:-1])


def in_float(trials: Sequence[Trial], share: float, already: Collection[str] = ()) -> list[Layer]:
    """The layers to leave in float: those whose INT8 costs most for the time that it saves, up to this share of all work. `already`: the
    names of operators that stay in float anyway, whose layers count for nothing."""
    room = share * sum(trial.work for trial in trials)
    found: list[Layer] = []
    for trial in sorted(trials, key=lambda one: -one.error / max(one.work, 1)):
        if trial.error > 0 and trial.work <= room and trial.layer.name not in already:
            found.append(trial.layer)
            room -= trial.work
    return found
