"""docs/fuzzing.md: what a run did stands between two marks, and is written by the command that did it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from covey_hil.faults.page import put
from covey_hil.fuzz.bench import Record

_FIGURES = "figures"


def write_page(path: Path, record: Record) -> None:
    path.write_text(put(path.read_text(), _FIGURES, figures(record)))


def figures(record: Record) -> Iterable[str]:
    found = len(record.findings)
    short = f" of {record.asked:,}, in {record.rounds} rounds," if record.inputs < 0.99 * record.asked else ""
    yield (
        f"{record.inputs:,} inputs{short} to {len(record.decoders)} decoders in {record.seconds / 60:.0f} minutes by one process, seed "
        f"{record.seed}, {record.limit_s:g} s of processor time for each: {found} finding{'' if found == 1 else 's'}."
    )
    yield ""
    yield "| decoder | bytes of | inputs | accepted | slowest | lines | findings |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for name, tally in record.decoders.items():
        reached, there = tally.lines
        lines = f"{reached} of {there}" if there else "–"
        ended = f" ({tally.ended} contained)" if tally.ended else ""
        yield (
            f"| {name} | {tally.sender} | {tally.inputs:,} | {tally.accepted:,} | {tally.slowest_ms:.1f} ms | {lines} "
            f"| {tally.findings}{ended} |"
        )
