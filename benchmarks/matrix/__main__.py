"""Every real model for every target: `./dev matrix [--quick] [--json] [--keep] [--model NAME] [--target NAME]`.

A whole run, which also measures the cost of a build and pruned models, writes `docs/matrix.md`; parts and quick runs, which draw fewer
samples, only print. Exit status 0 if no cell is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.matrix import cost, pruning
from benchmarks.matrix.cells import Cell, Row
from benchmarks.matrix.models import SUBJECTS
from benchmarks.matrix.packages import CACHE, unpacked
from benchmarks.matrix.subject import Subject, Unavailable
from benchmarks.matrix.table import Run, page, record
from covey_converters.backends import CPU_TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "matrix.md"
TARGETS = (*CPU_TARGETS, "tensorrt-rtx-fp32")
_ROUNDS = 2
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
    began = time.monotonic()
    load = [os.getloadavg()[0]]
    cells: list[Cell] = []
    absent: dict[str, str] = {}
    for subject in subjects:
        try:
            cells += _cells(subject, packages, targets, options)
        except Unavailable as why:
            absent[subject.name] = str(why)
            _say(f"{subject.name}: not in this run: {why}")
        load.append(os.getloadavg()[0])
    whole = len(subjects) == len(SUBJECTS) and targets == TARGETS and not options.quick
    rounds, pruned = _studies() if whole else ([], [])
    result = record(
        subjects,
        cells,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        quick=options.quick,
        run=Run(minutes=(time.monotonic() - began) / 60, load=max(load), absent=absent, rounds=rounds, pruned=pruned),
    )
    text = page(subjects, cells, result)
    if whole:
        PAGE.write_text(text)
    print(json.dumps(result, indent=2) if options.json else text)
    return 1 if result["wrong"] else 0


def _cells(subject: Subject, packages: Path, targets: tuple[str, ...], options: argparse.Namespace) -> list[Cell]:
    kept = CACHE / "cells" / f"{subject.name}.json"
    if options.keep and kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=list[Cell])
    found = Row(subject, packages, CACHE / "builds" / subject.name, quick=options.quick).cells(targets, _say)
    if targets == TARGETS and not options.quick:
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(msgspec.json.encode(found))
    return found


def _studies() -> tuple[list[cost.Round], list[pruning.Kept]]:
    """Cost and pruning, on the trained classifier; nothing where it cannot be trained."""
    folder = CACHE / "studies"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pruned = pruning.study(folder / "pruning", _say)
    except Unavailable as why:
        _say(f"no figures of cost and pruning: {why}")
        return [], []
    data = folder / "pruning"
    paths = (data / "dense.onnx", data / "calibration.npz", data / "evaluation.npz")
    rounds = cost.compare(*paths, folder / "cost", rounds=_ROUNDS)
    _say(f"cost: {', '.join(f'{one.ratio:.3f}' for one in rounds)}")
    return rounds, pruned


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
