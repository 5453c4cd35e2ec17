"""Every real model for every target: `./dev matrix [--quick] [--json] [--keep] [--model NAME] [--target NAME]`.

A whole run writes `docs/matrix.md`; parts and quick runs, which draw fewer samples, only print. Exit status 0 if no cell is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.matrix.cells import Cell, Row
from benchmarks.matrix.models import SUBJECTS
from benchmarks.matrix.packages import CACHE, unpacked
from benchmarks.matrix.table import page, record
from covey_converters.backends import CPU_TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "matrix.md"
TARGETS = (*CPU_TARGETS, "tensorrt-rtx-fp32")
_QUICK = ("text-angle", "voice-activity", "file-type")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(_QUICK)} only, a quarter of the samples")
    parser.add_argument("--model", action="append", choices=[one.name for one in SUBJECTS], help="repeatable")
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable")
    parser.add_argument("--keep", action="store_true", help="models of an earlier whole run are not built again")
    options = parser.parse_args()
    wanted = options.model or (_QUICK if options.quick else [one.name for one in SUBJECTS])
    subjects = [one for one in SUBJECTS if one.name in wanted]
    targets = tuple(options.target or TARGETS)
    # Toolchains are found and silenced as in every other task.
    os.environ.setdefault("CI", "true")
    packages = unpacked()
    cells: list[Cell] = []
    for subject in subjects:
        kept = CACHE / "cells" / f"{subject.name}.json"
        if options.keep and kept.exists():
            cells += msgspec.json.decode(kept.read_bytes(), type=list[Cell])
            continue
        row = Row(subject, packages, CACHE / "builds" / subject.name, quick=options.quick)
        made = row.cells(targets, _say)
        if targets == TARGETS and not options.quick:
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(msgspec.json.encode(made))
        cells += made
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = record(subjects, cells, date=date, quick=options.quick)
    text = page(subjects, cells, result)
    if len(subjects) == len(SUBJECTS) and targets == TARGETS and not options.quick:
        PAGE.write_text(text)
    print(json.dumps(result, indent=2) if options.json else text)
    return 1 if result["wrong"] else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
