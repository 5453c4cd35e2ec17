"""What can go wrong between a client and the server. Everything raised on purpose here is a `ClientError` of one line."""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """The server's API could not be used."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class Unreachable(ClientError):
    """No server answers at this address, or the connection broke. Another try may help."""


class Untrusted(ClientError):
    """The server's certificate is not one that we trust. Nothing, and no token, was sent to it."""


class BadAnswer(ClientError):
    """The server answered something that is not of its API, or bytes that are not what was asked for."""


class ApiError(ClientError):
    """The server said no. `code` is a slug for programs, `detail` a sentence for people (RFC 9457).

    `extra` are the problem document's further members, such as `field` and `line`.
    """

    def __init__(self, status: int, title: str, detail: str, code: str, extra: dict[str, Any] | None = None) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.code = code
        self.extra = extra or {}
        super().__init__(self._line())

    @property
    def field(self) -> str | None:
        """What in the request is wrong, as the caller wrote it."""
        field = self.extra.get("field")
        return field if isinstance(field, str) else None

    @property
    def line(self) -> int | None:
        """The line of the file that was sent."""
        line = self.extra.get("line")
        return line if isinstance(line, int) else None

    def _line(self) -> str:
        """Detail, with the field and the line where it does not name them itself."""
        text = " ".join((self.detail or self.title).split())
        if self.field and self.field not in text:
            text = f"{self.field}: {text}"
        if self.line is not None and f"line {self.line}" not in text:
            text = f"line {self.line}: {text}"
        return text
