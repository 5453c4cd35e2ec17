"""The examples in the contract's docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["conditions", "drift", "histogram", "manifest", "topics", "wire"]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"covey_contract.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
