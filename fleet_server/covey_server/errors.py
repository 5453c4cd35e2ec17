"""What the server says no to, and why. A `ServerError` becomes a problem document (RFC 9457), a `StartError` one line and an
exit code.

The class docstring is the default detail; `code` is a slug that programs decide by and never changes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServerError(Exception):
    """Something went wrong on the server."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    code: str = "internal"

    def __init__(self, detail: str | None = None, *, code: str | None = None, **extra: Any) -> None:
        """`extra` are further members of the problem document; they must be JSON."""
        self.detail = detail or (type(self).__doc__ or "").splitlines()[0]
        if code is not None:
            self.code = code
        self.extra: dict[str, Any] = extra
        super().__init__(self.detail)


class Invalid(ServerError):
    """The request does not make sense."""

    status = 422
    title = "Invalid request"
    code = "invalid"

    def __init__(
        self, detail: str | None = None, *, field: str | None = None, code: str | None = None, **extra: Any
    ) -> None:
        """`field` names what is wrong, as the caller wrote it."""
        if field is not None:
            extra["field"] = field
        super().__init__(detail, code=code, **extra)


class Unauthorized(ServerError):
    """This needs an API token: `Authorization: Bearer TOKEN`."""

    status = 401
    title = "Not authenticated"
    code = "unauthorized"


class Forbidden(ServerError):
    """Your role does not allow this."""

    status = 403
    title = "Not allowed"
    code = "forbidden"


class NotFound(ServerError):
    """There is no such thing."""

    status = 404
    title = "Not found"
    code = "not_found"


class Conflict(ServerError):
    """This contradicts what is already there."""

    status = 409
    title = "Conflict"
    code = "conflict"


class TooLarge(ServerError):
    """The request is larger than this server takes."""

    status = 413
    title = "Too large"
    code = "too_large"


class TooMany(ServerError):
    """Too many requests; try again in a while."""

    status = 429
    title = "Too many requests"
    code = "too_many_requests"


class Unavailable(ServerError):
    """The server cannot do this just now; try again."""

    status = 503
    title = "Not available now"
    code = "unavailable"


class StartError(Exception):
    """The server cannot start. The message is one clear line for its operator."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)


# Exit codes of `covey-server`.
EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_IN_USE = 3
