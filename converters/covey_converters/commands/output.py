"""Results on standard output, progress on standard error."""

from __future__ import annotations

import sys

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

people = Console(stderr=True, highlight=False)
tables = Console(highlight=False)


def progress() -> Progress:
    """A bar on standard error; nothing where that is no terminal."""
    columns = SpinnerColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=people, transient=True, disable=not people.is_terminal)


def print_json(value: object) -> None:
    say(msgspec.json.encode(value).decode())


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
