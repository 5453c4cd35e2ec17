"""Layers of the source, found again in OpenVINO's graph."""

from __future__ import annotations

from typing import Any

import pytest

from covey_converters.backends import openvino as backend
from covey_converters.errors import RecipeError
from tests.unit.converters.conftest import MakeModel


@pytest.fixture
def converted(make_model: MakeModel) -> Any:
    """Conv, Relu, GlobalAveragePool, Flatten: `a`, `b`, `c`, `scores`."""
    return backend._openvino().convert_model(str(make_model()))


def test_a_layer_is_found_by_what_it_gives(converted: Any) -> None:
    found = set(backend._same(converted, {"a", "b"}))
    kinds = {node.get_type_name() for node in converted.get_ordered_ops() if node.get_friendly_name() in found}
    assert {"Convolution", "Relu"} <= kinds
    assert not {"Parameter", "Constant", "Result"} & kinds


def test_names_that_are_lost_are_said_so(converted: Any) -> None:
    with pytest.raises(RecipeError, match="left none of the names"):
        backend._same(converted, {"nothing"})
    assert backend._same(converted, set()) == []
