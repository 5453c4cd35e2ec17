"""docs/faults.md: what was measured stands between two marks, and is written by the command that measured it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from covey_hil.faults.operations import OPERATIONS
from covey_hil.faults.sweep import FAULTS, Fault
from covey_hil.faults.table import CASES

_FIGURES, _TABLE = "figures", "cases"


def write_page(path: Path, record: dict[str, Any]) -> None:
    """Put what the record holds into the page; what was not run stays as it was."""
    text = path.read_text()
    if record["points"]:
        text = put(text, _FIGURES, figures(record))
    path.write_text(put(text, _TABLE, table()))


def figures(record: dict[str, Any]) -> Iterable[str]:
    """What the sweep did, by operation and fault."""
    drawn = "" if record["points"] == record["there_are"] else f" of {record['there_are']:,}, drawn evenly,"
    minutes = f"{record['sweep_s'] / 60:.0f} minutes by {record['workers']} at a time"
    yield f"{record['points']:,} points{drawn} in {minutes}, {record['failed']} failed."
    yield ""
    yield "| operation | what it is | " + " | ".join(map(str, Fault)) + " |"
    yield "|---|---|" + "--:|" * len(Fault)
    by_operation: dict[str, dict[str, int]] = record["by_operation"]
    for operation in OPERATIONS:
        counts = by_operation.get(operation.name, {})
        yield f"| {operation.name} | {operation.what} | " + " | ".join(str(counts.get(str(f), 0)) for f in Fault) + " |"
    yield ""
    yield from (f"- `{fault}`: {words}" for fault, words in FAULTS.items())


def table() -> Iterable[str]:
    yield f"{len(CASES)} cases."
    yield ""
    yield "| case | what is broken | when | what must hold |"
    yield "|---|---|---|---|"
    yield from (f"| {case.name} | {case.broken} | {case.when} | {case.holds} |" for case in CASES)


def part(text: str, name: str) -> str:
    """What stands between the marks of that name; raises `ValueError` if there are none."""
    return _between(text, name)[1]


def put(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with these lines between the marks of that name; raises `ValueError` if there are none."""
    place = _between(text, name)
    return text[: place.start(1)] + "\n".join([*lines, ""]) + text[place.end(1) :]


def _between(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no marks for {name}")
    return found
