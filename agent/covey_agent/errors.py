"""What can go wrong in the control process, named by whose fault it is. The class docstring is the default message."""

from __future__ import annotations

from covey_contract.reasons import Reason


class AgentError(Exception):
    """Something is wrong that the agent cannot mend by itself; its message is one line for people."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class NotEnrolledError(AgentError):
    """This state folder holds no identity; run `covey-agent enroll` first."""

    exit_code = 4


class UsageError(AgentError):
    """What the operator asked for makes no sense."""

    exit_code = 2


class EnrolmentError(AgentError):
    """The server did not give this device an identity."""

    exit_code = 5


class AlreadyRunningError(AgentError):
    """Another agent runs on this state folder."""

    exit_code = 3


class GatewayError(AgentError):
    """The gateway does not answer."""


class StepError(Exception):
    """A step of a deployment failed for a reason that the server is to hear."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail[:1900]
