"""What can be wrong with something that came from the other side. Everything raised on purpose here is a `ContractError`."""

from __future__ import annotations


class ContractError(Exception):
    """The other side sent something that breaks the contract."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class DecodeError(ContractError):
    """The bytes are not a message of the expected kind."""


class TooLargeError(DecodeError):
    """The message is larger than its kind may be."""


class UnknownVersionError(DecodeError):
    """The message has a version this side does not speak."""


class SignatureError(ContractError):
    """The envelope is not signed by a key that may sign this kind."""


class TopicError(ContractError):
    """The topic is not one of ours, or a name in it may not stand in a topic."""


class HistogramError(ContractError):
    """The histogram contradicts itself."""
