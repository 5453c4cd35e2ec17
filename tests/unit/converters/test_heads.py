"""The head of a graph, on small graphs of every form."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from covey_converters.heads import Operator, head, onnx_head

WEIGHTED = {"Conv", "Gemm"}


def graph(text: str) -> list[Operator]:
    """One operator a word: KIND:inputs>outputs; its name is its first output."""
    found = []
    for word in text.split():
        kind, _, rest = word.partition(":")
        inputs, _, outputs = rest.partition(">")
        found.append(Operator(outputs.split(",")[0], kind, tuple(inputs.split(",")), tuple(outputs.split(","))))
    return found


@pytest.mark.parametrize(
    ("operators", "outputs", "names"),
    [
        # A classifier: its last layer, and what follows.
        ("Conv:x>a Relu:a>b Conv:b>c Relu:c>d Gemm:d>e Softmax:e>y", "y", ["e", "y"]),
        # A detector with two branches into one tensor: both, though one layer comes long before the other.
        ("Conv:x>a Conv:a>boxes Conv:a>s Sigmoid:s>scores Concat:boxes,scores>y", "y", ["boxes", "s", "scores", "y"]),
        # Two outputs.
        ("Conv:x>a Conv:a>y Conv:a>z", "y,z", ["y", "z"]),
        # A branch without weights goes up to the layer that both share; that one is the head of this branch.
        ("Conv:x>w Conv:w>a Sigmoid:a>y Conv:a>z", "y,z", ["a", "y", "z"]),
        # Boxes that come out of a Softmax between two layers: what is between them is of the head too.
        (
            "Conv:x>w Conv:w>both Split:both>b,s Sigmoid:s>scores Softmax:b>soft Conv:soft>boxes Concat:boxes,scores>y",
            "y",
            ["both", "b", "scores", "soft", "boxes", "y"],
        ),
        # An output of the middle, behind which the graph goes on.
        ("Conv:x>a Relu:a>y Conv:y>b Relu:b>c Conv:c>z", "y,z", ["a", "y", "z"]),
        # Constants and inputs have no maker.
        ("Conv:x>a Mul:a,two>b Gemm:b,w>c Add:c,bias>y", "y", ["c", "y"]),
    ],
)
def test_heads(operators: str, outputs: str, names: list[str]) -> None:
    assert [one.name for one in head(graph(operators), outputs.split(","), WEIGHTED)] == names


@pytest.mark.parametrize("operators", ["Gemm:x>y", "Relu:x>y", "Conv:x>a Relu:a>y", ""])
def test_a_head_that_is_all_there_is_is_none(operators: str) -> None:
    assert head(graph(operators), ["y"], WEIGHTED) == []


def test_a_loop_of_tensors_ends() -> None:
    """No valid graph has one; a file may."""
    assert head(graph("Conv:x>w Add:y,w>a Add:a,w>y"), ["y"], WEIGHTED) == []


def test_onnx_nodes_without_a_name_are_called_by_their_output() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "k"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["y"], name="last"),
    ]
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])
    model = helper.make_model(helper.make_graph(nodes, "g", [], [info]))
    assert onnx_head(model) == ["b", "last"]
