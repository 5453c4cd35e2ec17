"""The server's log on standard error: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import datetime
import json
import logging

from covey_server.settings import Settings

# These say much at "info" that is of no use to an operator.
_QUIET = ("alembic", "uvicorn.error", "uvicorn.access", "httpx", "asyncio")


class HumanFormatter(logging.Formatter):
    """`08:12:03 warning fleet.broker: …`"""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).astimezone()
        text = f"{at:%H:%M:%S} {record.levelname.lower():7} {_where(record)}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """`{"time": "2030-01-01T08:12:03.123+00:00", "level": …, "logger": …, "thread": …, "message": …}`"""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(settings: Settings) -> None:
    """Set up the root logger; once, by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _where(record: logging.LogRecord) -> str:
    return record.name.removeprefix("covey_server.")
