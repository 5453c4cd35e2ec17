"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from covey_converters import evidence
from covey_converters.backends import tensorrt_engine
from covey_converters.metrics import characters, classification


@pytest.mark.parametrize(
    "module", [evidence, tensorrt_engine, characters, classification], ids=lambda module: module.__name__
)
def test_docstring_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
