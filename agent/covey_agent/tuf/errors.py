"""Why the repository's word is not taken. Every refusal has the reason that the server is told."""

from __future__ import annotations

from covey_agent.errors import AgentError
from covey_contract.reasons import Reason


class RepositoryError(AgentError):
    """What the repository offers is not to be believed, or cannot be had."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Refused(RepositoryError):
    """The bytes came, and a rule of the specification forbids them."""


class Unavailable(RepositoryError):
    """The bytes did not come: no answer, too slow, or cut short."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.METADATA_UNAVAILABLE, message)


class Missing(Unavailable):
    """The repository has no such file."""
