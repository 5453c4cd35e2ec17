"""What the command line says: tables and words for people, or with `--json` one object on standard output and nothing else.

What comes from devices and other people is shown without control characters and never as markup.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
_PIPE_WIDTH = 200
# The colours of states; anything else is plain.
_STYLES = {
    **dict.fromkeys(["active", "built", "checked", "done", "online", "passed", "running", "ok", "whole"], "green"),
    **dict.fromkeys(["failed", "refused", "halted", "rolled_back", "breached", "aborted", "revoked", "broken"], "red"),
    **dict.fromkeys(["queued", "building", "paused", "rolling_back", "waiting", "offline", "unsupported"], "yellow"),
    **dict.fromkeys(["simulated"], "magenta"),
}


class _Console(Console):
    """rich ends the program by itself on a broken pipe; our main does that."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


class Output:
    """Standard output for results, standard error for everything on the way."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def result(self, document: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """The command's result: as JSON, or as `show` shows it to people."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        elif show is not None:
            show()

    def say(self, text: str) -> None:
        """A line of the result."""
        self._out.print(Text(plain(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line on the way, on standard error."""
        self._err.print(Text(plain(text)), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        self._picture(make_table(columns, rows, title))

    def facts(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, one a line; those without a value are left out."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs:
            if value not in (None, "", [], ()):
                grid.add_row(name, _cell(value))
        self._picture(grid)

    def _picture(self, picture: RenderableType) -> None:
        """To a pipe without the blanks that fill a terminal's lines."""
        if self._out.is_terminal:
            self._out.print(picture)
            return
        with self._out.capture() as captured:
            self._out.print(picture)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    @contextmanager
    def live(self) -> Iterator[Callable[[RenderableType, str], None]]:
        """Yields `update(picture, line)`: a picture that changes in place on a terminal, a line at each change elsewhere."""
        if not self._err.is_terminal:
            last = ""

            def update_line(_: RenderableType, line: str) -> None:
                nonlocal last
                if line != last:
                    last = line
                    self.note(line)

            yield update_line
            return
        with Live(console=self._err, auto_refresh=False, transient=True) as live:
            yield lambda picture, _: live.update(picture, refresh=True)

    @contextmanager
    def upload(self, sizes: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
        """Yields `sent(name, bytes)`: progress bars on a terminal, nothing elsewhere."""
        if not self._err.is_terminal:
            yield lambda _name, _sent: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self._err, transient=True) as progress:
            tasks = {name: progress.add_task(name, total=size) for name, size in sizes.items()}
            yield lambda name, sent: progress.update(tasks[name], completed=sent)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def plain(text: str) -> str:
    """Without control characters, which could rewrite the terminal.

    >>> plain("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join("?" if unicodedata.category(one) in ("Cc", "Cf") and one not in "\n\t" else one for one in text)


def size(count: int | float | None) -> str:
    """Bytes for people.

    >>> size(84), size(48_200), size(3_100_000)
    ('84 B', '48.2 kB', '3.1 MB')
    """
    if not count:
        return "-"
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f} B"


def ago(at_ms: int | None, now_ms: int | None = None) -> str:
    """How long ago, for people.

    >>> ago(1_000, 66_000), ago(None)
    ('65 s ago', 'never')
    """
    if at_ms is None:
        return "never"
    seconds = max(0, ((now_ms if now_ms is not None else int(time.time() * 1000)) - at_ms) // 1000)
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def moment(at_ms: int | None) -> str:
    """A moment in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ms / 1000)) if at_ms is not None else "-"


def _cell(value: object) -> Text:
    text = "-" if value is None else plain(str(value))
    return Text(text, style=_STYLES.get(text, ""))


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width; a table cut to 80 columns would be of no use there.
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)
