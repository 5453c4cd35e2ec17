"""The server's log on standard error: lines for people, or one JSON object a line for machines.

What a line is about is told by fields of its own, which whoever works on it sets for as long as that lasts:

    with logs.about(campaign="digits-1.1"):
        log.info("stage canary passed")

Known fields: `request`, `campaign`, `device`; and, where something is traced, `trace` and `span`.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from covey_server.settings import Settings

# These say much at "info" that is of no use to an operator.
_QUIET = ("alembic", "uvicorn.error", "uvicorn.access", "httpx", "asyncio", "opentelemetry")
FIELDS = ("request", "campaign", "device")
_about: ContextVar[Mapping[str, str]] = ContextVar("covey_log_about")


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Every line that is logged within, in this thread or task, carries these fields. They are of `FIELDS`."""
    if unknown := fields.keys() - set(FIELDS):
        raise ValueError(f"{sorted(unknown)[0]} is no field of the log")
    token = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class HumanFormatter(logging.Formatter):
    """`08:12:03 warning fleet.broker: …`"""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).astimezone()
        text = f"{at:%H:%M:%S} {record.levelname.lower():7} {_where(record)}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """`{"time": "2030-01-01T08:12:03.123+00:00", "level": …, "logger": …, "thread": …, "message": …, "campaign": …}`

    `current` gives the `traceparent` of what is being done, if it is traced.
    """

    def __init__(self, current: Callable[[], str | None] = lambda: None) -> None:
        super().__init__()
        self._current = current

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
            **_about.get({}),
        }
        traceparent = self._current()
        if traceparent is not None:
            _, line["trace"], line["span"], _ = traceparent.split("-")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(settings: Settings, current: Callable[[], str | None] = lambda: None) -> None:
    """Set up the root logger; once, by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(current) if settings.log_format == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _where(record: logging.LogRecord) -> str:
    return record.name.removeprefix("covey_server.")
