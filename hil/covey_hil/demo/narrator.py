"""Tells people what happens, on standard error: standard output belongs to `--json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


class Narrator:
    def __init__(self) -> None:
        # A log file has no width of its own; what goes there may be wide.
        self._console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
        self._began = time.monotonic()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self._console.print(f"\n[bold]{self._chapter}. {title}[/bold]")

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {text}")

    def command(self, words: Sequence[str]) -> None:
        """What an operator would type to do the same."""
        self.say(f"[cyan]$ {' '.join(words)}[/cyan]")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*columns, title=title, title_justify="left", title_style="bold", expand=False)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began


def print_json(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
