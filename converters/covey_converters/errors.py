"""What can go wrong in a conversion, named by whose fault it is. The message is the one line that people read."""

from __future__ import annotations


class ConvertError(Exception):
    """The conversion cannot go on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class BadInputError(ConvertError):
    """What the operator gave is no usable model, data or option."""


class MetricError(BadInputError):
    """The operator's own metric failed."""


class UnsupportedError(ConvertError):
    """This model cannot become this target, or not on this machine."""


class RecipeError(ConvertError):
    """This recipe does not work for this model; another may."""


class UnverifiableError(ConvertError):
    """What was built cannot be run on this machine, so it was not compared with its source; building it was a check of the graph."""


class ToolchainError(ConvertError):
    """A toolchain is missing, or could not be installed."""


class ServerError(ConvertError):
    """The server refused, or answered something that is not its protocol."""
