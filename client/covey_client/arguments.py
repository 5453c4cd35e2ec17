"""The arguments that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from covey_client.api import Client
from covey_client.errors import ClientError
from covey_client.output import Output

# Exit codes, as the help and the documentation list them.
OK = 0
FAILED = 1
USAGE = 2
TIMED_OUT = 3
UNREACHABLE = 4
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES = f"""exit codes:
  {OK}    it is done, or what was waited for has come about
  {FAILED}    the server said no; or a build, a campaign or the audit log is not as it was asked to be
  {USAGE}    wrong arguments, no server given, a file that cannot be read, a certificate that is not trusted
  {TIMED_OUT}    what was waited for did not come about in time
  {UNREACHABLE}    no server answers
  {INTERRUPTED}  interrupted"""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class UsageError(ClientError):
    """Wrong arguments."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said, instead of all that would be right."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` tells more)")


@dataclass(frozen=True)
class Run:
    """What a command is given: its options, where to say things, and the server's API."""

    options: argparse.Namespace
    out: Output
    client: Client


Handler = Callable[[Run], int]
# A command that is not about a server, or not yet.
LocalHandler = Callable[[argparse.Namespace], int]
Commands = argparse._SubParsersAction  # noqa: SLF001  # argparse gives it no public name


class Adder:
    """Adds commands, each with the options that all have."""

    def __init__(self, subparsers: Commands[Parser], common: Parser) -> None:
        self._subparsers = subparsers
        self._common = common

    def command(
        self, name: str, handler: Handler | LocalHandler, summary: str, *, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            parents=[self._common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=epilog,
        )
        parser.set_defaults(handler=handler)
        return parser

    def family(self, name: str, summary: str) -> Adder:
        """A noun, whose commands are its verbs."""
        parser = self._subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        return Adder(parser.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND"), self._common)


def duration(text: str) -> float:
    """Seconds: a number with or without a unit.

    >>> duration("90"), duration("15s"), duration("2h")
    (90.0, 15.0, 7200.0)
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration (90, 15s, 10m, 2h, 7d)")
    return float(match[1]) * _UNITS[match[2] or "s"]


def since(text: str, now_s: float | None = None) -> int:
    """A moment as Unix time in milliseconds: so long ago, or a date with or without a time (UTC).

    >>> since("7d", now_s=1_000_000.0), since("1970-01-02"), since("1970-01-01T00:01")
    (395200000, 86400000, 60000)
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        ago_s = duration(text)
        return round(((time.time() if now_s is None else now_s) - ago_s) * 1000)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE.

    >>> pair("line=a=b")
    ('line', 'a=b')
    """
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def label(text: str) -> tuple[str, str | None]:
    """KEY=VALUE to set a label, KEY- to take it away.

    >>> label("line=a"), label("line-")
    (('line', 'a'), ('line', None))
    """
    if "=" not in text and text.endswith("-") and len(text) > 1:
        return text[:-1], None
    return pair(text)


def file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, str | list[str]]:
    """A selector: a key that is given twice may have either value.

    >>> grouped([("a", "1"), ("b", "2"), ("a", "3")])
    {'a': ['1', '3'], 'b': '2'}
    """
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: several[0] if len(several) == 1 else several for key, several in values.items()}
