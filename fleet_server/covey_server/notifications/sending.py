"""One attempt to deliver one notice: what is sent, and what comes of it."""

from __future__ import annotations

import datetime
import json
import ssl
import time
from dataclasses import dataclass
from typing import Any

from covey_server import __version__
from covey_server.notifications import destination
from covey_server.notifications.destination import BadDestinationError, Resolve
from covey_server.notifications.mail import Letter, Mailer, MailError
from covey_server.notifications.posting import PostFailedError, post
from covey_server.notifications.signing import signature

_GONE = 410


@dataclass(frozen=True)
class Told:
    """A notice as it is sent."""

    key: str
    event: str
    at_ms: int
    summary: str
    data: dict[str, Any]

    def body(self) -> bytes:
        """As Standard Webhooks has it: type, timestamp, data."""
        document = {"type": self.event, "timestamp": _iso(self.at_ms), "data": {"summary": self.summary, **self.data}}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(frozen=True)
class Hook:
    """A webhook with its secrets opened: the present one first, then the previous one while it still counts."""

    url: str
    secrets: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt. `hopeless`: no further one will do better; `gone`: the receiver wants no more at all."""

    delivered: bool
    status: int | None = None
    error: str = ""
    duration_ms: int = 0
    retry_after_s: int | None = None
    hopeless: bool = False
    gone: bool = False


class Sender:
    """Sends to webhooks and by e-mail; knows no database. `resolve` and `context` are for tests."""

    def __init__(
        self,
        mailer: Mailer,
        *,
        private: bool,
        timeout_s: float,
        resolve: Resolve | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._mailer, self._private, self._timeout_s = mailer, private, timeout_s
        self._resolve, self._context = resolve, context

    def post(self, hook: Hook, told: Told, now_ms: int) -> Outcome:
        """One POST; never raises for what the receiver does."""
        began = time.monotonic()
        body, at_s = told.body(), now_ms // 1000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"covey/{__version__}",
            "webhook-id": told.key,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(hook.secrets, told.key, at_s, body),
        }
        try:
            target = destination.parse(hook.url, private=self._private)
            addresses = destination.addresses(target, private=self._private, resolve=self._resolve)
            answer = post(target, addresses, body, headers, self._timeout_s, self._context)
        except BadDestinationError as error:
            return Outcome(False, error=str(error), duration_ms=_since(began))
        except OSError as error:
            return Outcome(False, error=f"the name is not known: {error.strerror or error}", duration_ms=_since(began))
        except PostFailedError as error:
            return Outcome(False, error=str(error), duration_ms=_since(began))
        took = _since(began)
        if 200 <= answer.status < 300:
            return Outcome(True, answer.status, duration_ms=took)
        words = f"answered {answer.status}"
        if 300 <= answer.status < 400:
            words += "; redirects are not followed"
        gone = answer.status == _GONE
        return Outcome(False, answer.status, words, took, answer.retry_after_s, hopeless=gone, gone=gone)

    def mail(self, recipient: str, told: Told, link: str) -> Outcome:
        """One letter; never raises for what the mail server does."""
        began = time.monotonic()
        lines = [told.summary, "", f"{told.event} at {_iso(told.at_ms)}"]
        lines += [f"{name}: {value}" for name, value in told.data.items() if isinstance(value, str | int | float)]
        if link:
            lines += ["", link]
        letter = Letter(told.key, recipient, f"[Covey] {told.summary}", "\n".join(lines) + "\n", told.at_ms)
        try:
            self._mailer.send(letter)
        except (MailError, OSError) as error:
            hopeless = isinstance(error, MailError) and error.permanent
            return Outcome(False, error=str(error), duration_ms=_since(began), hopeless=hopeless)
        return Outcome(True, duration_ms=_since(began))


def _iso(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
