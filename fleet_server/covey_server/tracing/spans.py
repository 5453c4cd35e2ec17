"""What the server says to a tracer, whichever there is, and the one that does nothing.

A trace crosses processes and weeks as a `traceparent` (W3C Trace Context) that is kept with the version and with each build:
whatever comes later is told as a child of that. Spans that lie in the past, such as what a device reports of its swap, are told
once they have ended, with their own times.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

Attribute = str | int | float | bool


@dataclass(frozen=True)
class Past:
    """A span that has ended. Times are Unix times in milliseconds."""

    name: str
    start_ms: int
    end_ms: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    problem: str = ""  # why it went wrong; empty: it went well


class RequestSpan(Protocol):
    """The span of a request that is being answered."""

    def answered(self, route: str, status: int) -> None:
        """`route` as the API declares it, without the names in it."""


class Tracing(Protocol):
    """Where spans go. Thread-safe; nothing of it may fail its caller."""

    on: bool

    def request(self, method: str, traceparent: str) -> AbstractContextManager[RequestSpan]:
        """A span for as long as the request is answered, child of what the caller names, and the current one meanwhile."""

    def current(self) -> str | None:
        """The `traceparent` of the current span, if there is one that is kept."""

    def past(self, span: Past, parent: str | None) -> str | None:
        """Tell of a span that has ended; its `traceparent`. None if nobody keeps it."""

    def stop(self) -> None:
        """Send what is still to be sent; bounded in time."""


class _NoSpan:
    def answered(self, route: str, status: int) -> None:
        """Nobody asked."""


class NoTracing:
    """The default: nothing is traced."""

    on = False

    def request(self, method: str, traceparent: str) -> AbstractContextManager[RequestSpan]:  # noqa: ARG002 - as the protocol has it
        return nullcontext(_NoSpan())

    def current(self) -> str | None:
        return None

    def past(self, span: Past, parent: str | None) -> str | None:  # noqa: ARG002 - as the protocol has it
        return None

    def stop(self) -> None:
        return


OFF: Tracing = NoTracing()
