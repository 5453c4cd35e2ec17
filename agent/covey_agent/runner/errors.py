"""Why a runner cannot load its build, or cannot answer."""

from __future__ import annotations

from covey_contract.reasons import Reason


class LoadError(Exception):
    """The build cannot be loaded here."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class BadOutputError(Exception):
    """The build answered with something that is no answer: NaN, or another shape or type than its manifest says."""
