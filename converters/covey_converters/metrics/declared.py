"""How a metric is declared: the grammar is the contract's (`covey_contract.metric`), which the server checks a push by."""

from __future__ import annotations

from covey_contract import metric
from covey_contract.errors import DecodeError
from covey_contract.metric import CUSTOM, Declared
from covey_converters.errors import BadInputError

__all__ = ["CUSTOM", "Declared", "parse"]


def parse(text: str) -> Declared:
    """Raises `BadInputError` with the part that is wrong."""
    try:
        return metric.parse(text)
    except DecodeError as error:
        raise BadInputError(str(error)) from error
