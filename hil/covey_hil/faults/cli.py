"""`./dev faults`: sweeps every system call of the agent's durable operations, then runs the table of named cases.

    ./dev faults [--json] [--only sweep|cases] [--points N] [--operation NAME] [--fault NAME] [--write]

It ends with 1 if anything failed. `--write` puts the figures and the table into docs/faults.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covey_hil.faults.cases import run_cases
from covey_hil.faults.disk import why_not
from covey_hil.faults.operations import BY_NAME
from covey_hil.faults.page import write_page
from covey_hil.faults.sweep import Fault, Swept, sweep
from covey_hil.faults.table import CASES

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev faults", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--only", choices=["sweep", "cases"])
    parser.add_argument("--points", type=int, help="so many of all points, drawn evenly (default: all)")
    parser.add_argument("--operation", action="append", choices=list(BY_NAME), help="sweep this one; may be repeated")
    parser.add_argument("--fault", action="append", choices=[*map(str, Fault)], help="with this fault; may be repeated")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--write", action="store_true", help="also write docs/faults.md")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"cases": 0, "points": 0, "failed": 0, "skipped": 0, "failures": []}
    if options.only != "cases":
        _sweep(options, record)
    if options.only != "sweep":
        _cases(record, options.workers)
    if options.write:
        write_page(ROOT / "docs" / "faults.md", record)
    if options.json:
        print(json.dumps(record))
    else:
        print(
            f"{record['cases']} cases, {record['points']} points, {record['failed']} failed, {record['skipped']} skipped"
        )
    return 1 if record["failed"] else 0


def _sweep(options: argparse.Namespace, record: dict[str, Any]) -> None:
    faults = [Fault(name) for name in options.fault or Fault]
    with tempfile.TemporaryDirectory(prefix="covey-faults-") as folder:
        if Fault.POWER in faults and (why := why_not(Path(folder))) is not None:
            say(f"no power cuts: {why}")
            faults.remove(Fault.POWER)
            record["no_power_cuts"] = why
    if Fault.POWER in faults and not options.fault:
        faults.remove(Fault.RESET)  # a power cut is that, and more
    began = time.monotonic()
    swept = sweep(
        say,
        operations=options.operation or tuple(BY_NAME),
        faults=faults,
        most=options.points,
        workers=options.workers,
    )
    record["points"] = sum(swept.points.values())
    record["there_are"] = swept.there_are
    record["workers"] = options.workers
    record["missed"] = len(swept.missed)
    record["sweep_s"] = round(time.monotonic() - began, 1)
    record["by_operation"] = _grid(swept)
    _failed(record, [{"what": failure.point, "why": list(failure.wrong)} for failure in swept.failures])
    # A point that was planned and not come to was not tested, and is nothing to be silent about.
    _failed(record, [{"what": point, "why": ["it was not reached"]} for point in swept.missed])


def _grid(swept: Swept) -> dict[str, dict[str, int]]:
    names = dict.fromkeys(operation for operation, _ in swept.points)
    return {name: {str(fault): swept.points[name, fault] for fault in Fault} for name in names}


def _cases(record: dict[str, Any], workers: int) -> None:
    began = time.monotonic()
    results = run_cases(ROOT, CASES, say, workers)
    record["case_results"] = {case.name: results[case.name].outcome for case in CASES}
    record["cases"] = sum(result.outcome == "passed" for result in results.values())
    record["skipped"] = sum(result.outcome == "skipped" for result in results.values())
    record["cases_s"] = round(time.monotonic() - began, 1)
    _failed(
        record,
        [{"what": name, "why": [result.why]} for name, result in results.items() if result.outcome == "failed"],
    )


def _failed(record: dict[str, Any], failures: list[dict[str, Any]]) -> None:
    record["failures"] += failures
    record["failed"] += len(failures)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
