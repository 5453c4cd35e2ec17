"""Which operators form the head of a graph: on every path to an output, the last one with weights and all behind it.

That is where one wrong scale costs the most: the branches of a detector end in one tensor of boxes and scores. A recipe that
keeps the head in float excludes these operators from quantisation, whatever a runtime calls them. Pure; every runtime's graph
comes as a list of `Operator`.

    image -> Conv -> Relu -> Conv (boxes)  ----------> Concat -> out
                         \\-> Conv (scores) -> Sigmoid -/            head: both last Convs, Sigmoid, Concat

What takes anything from the head is part of it, so that no operator in its midst is left to quantise: a detector's boxes may come out of
a Softmax between two layers with weights, the first of which is the last on the way of the scores. Not so where the graph goes on from there
with layers of its own, as behind an output of its middle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ONNX_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Operator:
    """`inputs` and `outputs` are tensors, by whatever names the runtime has for them."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def head(operators: Sequence[Operator], outputs: Iterable[str], weighted: Collection[str]) -> list[Operator]:
    """The head of a graph with these outputs, in the graph's order; `weighted` are the kinds of operator that have weights.

    A branch without any weights belongs to the head as a whole. If the head were the whole graph there would be nothing left to
    quantise: then it is empty.
    """
    all_weighted = {index for index, operator in enumerate(operators) if operator.kind in weighted}
    found = _with_all_behind(operators, _last_ones(operators, outputs, weighted), all_weighted)
    if all_weighted <= found:
        return []
    return [operators[index] for index in sorted(found)]


def _last_ones(operators: Sequence[Operator], outputs: Iterable[str], weighted: Collection[str]) -> set[int]:
    """From the outputs back to the first operator with weights, on every path."""
    makers = {tensor: index for index, operator in enumerate(operators) for tensor in operator.outputs}
    found: set[int] = set()
    waiting = [makers[tensor] for tensor in outputs if tensor in makers]
    while waiting:
        index = waiting.pop()
        if index in found:
            continue
        found.add(index)
        if operators[index].kind not in weighted:
            waiting += [makers[tensor] for tensor in operators[index].inputs if tensor in makers]
    return found


def _with_all_behind(operators: Sequence[Operator], first: set[int], weighted: set[int]) -> set[int]:
    takers: dict[str, list[int]] = {}
    for index, operator in enumerate(operators):
        for tensor in operator.inputs:
            takers.setdefault(tensor, []).append(index)
    found = set(first)
    for index in first:
        behind: set[int] = set()
        waiting = [index]
        while waiting:
            one = waiting.pop()
            if one not in behind:
                behind.add(one)
                waiting += [taker for tensor in operators[one].outputs for taker in takers.get(tensor, ())]
        if behind & weighted <= first:
            found |= behind
    return found


def onnx_operators(model: Any) -> list[Operator]:
    """The operators of an ONNX graph; one without a name is called by its first output."""
    return [
        Operator(node.name or node.output[0], node.op_type, tuple(node.input), tuple(node.output))
        for node in model.graph.node
    ]


def onnx_head(model: Any) -> list[str]:
    """The names of the head's nodes in an ONNX graph."""
    found = head(onnx_operators(model), [output.name for output in model.graph.output], ONNX_WEIGHTED)
    return [operator.name for operator in found]
