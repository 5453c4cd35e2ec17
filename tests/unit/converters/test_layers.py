"""The layers of a graph, and which of them stay in float."""

from __future__ import annotations

import pytest

from covey_converters.heads import Operator
from covey_converters.layers import Layer, Trial, in_float, layers, recipes, work
from tests.unit.converters.test_heads import WEIGHTED, graph


@pytest.mark.parametrize(
    ("operators", "found"),
    [
        ("Conv:x>a Relu:a>b Conv:b>c", [["a", "b"], ["c"]]),
        # An activation of two operators, and an addition, which belongs to the later of the layers it takes from.
        ("Conv:x>a Sigmoid:a>s Mul:a,s>b Conv:b>c Add:b,c>d Conv:d>y", [["a", "s", "b"], ["c", "d"], ["y"]]),
        # What comes before all weights is of no layer.
        ("Mul:x,k>a Conv:a>b Relu:b>y", [["b", "y"]]),
        ("Relu:x>y", []),
    ],
)
def test_layers(operators: str, found: list[list[str]]) -> None:
    made = layers(graph(operators), WEIGHTED)
    assert [[one.name for one in layer.operators] for layer in made] == found
    assert [layer.name for layer in made] == [names[0] for names in found]


@pytest.mark.parametrize(
    ("kind", "output", "weight", "multiplications"),
    [
        ("Conv", (1, 8, 4, 4), (8, 3, 3, 3), 8 * 16 * 27),
        ("Conv", (2, 8, 4, 4), (8, 1, 3, 3), 2 * 8 * 16 * 9),  # depthwise, two rows
        ("MatMul", (1, 5, 7), (3, 7), 5 * 21),
        ("Gemm", (1, 10), (64, 10), 640),
    ],
)
def test_work(kind: str, output: tuple[int, ...], weight: tuple[int, ...], multiplications: int) -> None:
    assert work(kind, output, weight) == multiplications


def trial(name: str, error: float, multiplications: int) -> Trial:
    return Trial(Layer((Operator(name, "Conv", (), (name,)),)), error, multiplications)


def kept(share: float, *already: str) -> list[str]:
    tried = [trial("good", 0.001, 600), trial("small", 0.02, 50), trial("costly", 0.5, 150), trial("none", 0.0, 200)]
    return [layer.name for layer in in_float(tried, share, already)]


def test_what_costs_most_for_its_work_stays_in_float() -> None:
    assert kept(0.1) == ["small"]  # the costliest one has more work than that
    assert kept(0.15) == ["costly"]
    assert kept(0.25) == ["costly", "small"]
    assert kept(1.0) == ["costly", "small", "good"]  # one without an error gains nothing in float


def test_what_is_in_float_anyway_takes_no_room() -> None:
    assert kept(0.1, "small") == []
    assert kept(0.15, "costly") == ["small"]


def test_recipes_have_names_of_their_own() -> None:
    names = recipes("static")
    assert len(names) == len(set(names.values())) > 1
    assert all(name.startswith("static, ") for name in names)
