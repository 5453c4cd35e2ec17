"""Why a request got no answer from a model: each with its HTTP status and its code in telemetry."""

from __future__ import annotations

from typing import ClassVar

from covey_agent.gateway.probation import Failing
from covey_contract.reasons import Reason


class BadRequest(Exception):  # noqa: N818  # named as HTTP names it
    """The request is malformed; the text names the field."""


class ServeError(Exception):
    """The request cannot be answered."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None


class NoBuildError(ServeError):
    """No build of the model serves."""

    status = 503
    code = "unavailable"
    retry_after_s = 1


class QueueFullError(ServeError):
    """Too many requests wait for the model already."""

    status = 429
    code = "queue_full"
    retry_after_s = 1


class MemoryFullError(ServeError):
    """The tensors of the requests that wait already take all the memory that they may."""

    status = 503
    code = "memory_full"
    retry_after_s = 1


class DeadlineError(ServeError):
    """The request's time was over before it was answered."""

    status = 504
    code = Failing.LATE.value


class InferenceError(ServeError):
    """The runtime failed on this request."""

    code = Failing.ERROR.value


class BadOutputError(ServeError):
    """The model answered with NaN, or with another shape than its manifest says."""

    code = Failing.BAD_OUTPUT.value


class CrashedError(ServeError):
    """The runner died of this request, also when it was tried again."""

    code = Failing.CRASHED.value


BY_FAILING: dict[Failing, type[ServeError]] = {
    Failing.ERROR: InferenceError,
    Failing.BAD_OUTPUT: BadOutputError,
    Failing.LATE: DeadlineError,
    Failing.CRASHED: CrashedError,
    Failing.HUNG: CrashedError,
}


class OrderError(Exception):
    """An order of the control process cannot be followed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
