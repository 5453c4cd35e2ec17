"""`./dev bench verdicts [--quick] [--json] [--fleets N] [--out FILE]`: how often each rule halts campaigns, rightly and wrongly.

Every fleet is drawn anew from a seed of its own; the seeds of the table are not those that anything was chosen by.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.verdicts import installs
from benchmarks.verdicts.fleet import HARSH, Model
from benchmarks.verdicts.rules import RULES
from benchmarks.verdicts.scenarios import Outcome, run

# Rules and their numbers were chosen on seeds from 77,000,000 on; these are for the table alone.
SEED = 500_000_000
HARSH_SEED = 600_000_000
QUICK_FLEETS, FULL_FLEETS = 8, 250
OURS = "covey_e_process"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev bench verdicts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few fleets: minutes instead of an hour, wide intervals")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument("--fleets", type=int, metavar="N", help="simulated fleets")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the object there too")
    options = parser.parse_args(arguments)
    fleets = options.fleets or (QUICK_FLEETS if options.quick else FULL_FLEETS)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    done = _simulate(fleets, options.jobs)
    result = summary(
        [outcome for each in done if not each.task.harsh for outcome in each.outcomes],
        [outcome for each in done if each.task.harsh for outcome in each.outcomes],
    )
    result |= {
        "fleets": sum(not each.task.harsh for each in done),
        "harsh_fleets": sum(each.task.harsh for each in done),
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(result, indent=None if options.json else 2)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(text if options.json else _table(result))
    return 0


@dataclass(frozen=True)
class _Task:
    seed: int
    harsh: bool
    beyond: bool


@dataclass(frozen=True)
class _Done:
    task: _Task
    outcomes: list[Outcome]


def _simulate(fleets: int, jobs: int) -> list[_Done]:
    """Every fifth fleet has a harsher one beside it, and every second one runs what the study left out, too. Whoever interrupts it gets
    the table of what was done."""
    tasks = []
    for number in range(fleets):
        tasks.append(_Task(SEED + number, harsh=False, beyond=number % 2 == 0))
        if number % 5 == 0:
            tasks.append(_Task(HARSH_SEED + number, harsh=True, beyond=False))
    done: list[_Done] = []
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks)), _leave_interrupts) as pool:
        try:
            for each in pool.imap_unordered(_run, tasks):
                done.append(each)
                if len(done) % 10 == 0 or len(done) == len(tasks):
                    text = f"{len(done)} of {len(tasks)} fleets, {time.monotonic() - began:.0f} s"
                    print(text, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(f"interrupted after {len(done)} of {len(tasks)} fleets", file=sys.stderr, flush=True)
            pool.terminate()
    return done


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(task: _Task) -> _Done:
    return _Done(task, run(task.seed, HARSH if task.harsh else Model(), beyond=task.beyond))


# --- figures ------------------------------------------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome], harsh: Sequence[Outcome]) -> dict[str, Any]:
    """Ours at the top, then the same for each rule, then what only ours was asked."""
    rules = {rule: _of_rule(outcomes, rule) for rule in RULES}
    return {
        **rules[OURS],
        "rules": {rule: found for rule, found in rules.items() if rule != OURS},
        "beyond_the_study": {
            name: _rates(outcomes, name, canaries, OURS)
            for name, canaries in sorted({(each.scenario, each.canaries) for each in outcomes})
            if name not in _STUDIED
        },
        "harsh_fleet": _of_rule(harsh, OURS),
        "one_kind_20pct_by_kind": {
            str(kind): _share_of([each.halts[OURS] for each in outcomes if each.kind == kind], 15)
            for kind in sorted({each.kind for each in outcomes if each.kind is not None})
        },
        "installs": installs.table(),
    }


_STUDIED = {
    "unchanged",
    "whole_10pct",
    "tail_10pct",
    "one_kind_20pct",
    "whole_20pct",
    "tail_20pct",
    "errors_x10",
}


def _of_rule(outcomes: Sequence[Outcome], rule: str) -> dict[str, Any]:
    whole, tail = (_share(outcomes, name, 50, rule, 10) for name in ("whole_10pct", "tail_10pct"))
    unchanged = {str(canaries): _share(outcomes, "unchanged", canaries, rule) for canaries in (10, 50, 200)}
    all_unchanged = [each.halts[rule] for each in outcomes if each.scenario == "unchanged"]
    medians = [
        minutes
        for name, canaries in (
            ("whole_10pct", 50),
            ("tail_10pct", 50),
            ("one_kind_20pct", 50),
            ("whole_20pct", 10),
            ("errors_x10", 50),
        )
        if (minutes := _median(outcomes, name, canaries, rule)) is not None
    ]
    return {
        "false_halt_rate": _share_of(all_unchanged),
        "false_halts_by_canaries": unchanged,
        "detected_10pct_p99": min((whole, tail), key=lambda share: share["rate"]),
        "detected_10pct_whole": whole,
        "detected_10pct_tail": tail,
        "detected_20pct_p99_10canaries": _share(outcomes, "whole_20pct", 10, rule, 15),
        "detected_20pct_tail_10canaries": _share(outcomes, "tail_20pct", 10, rule, 15),
        "detected_10pct_p99_10canaries": _share(outcomes, "whole_10pct", 10, rule, 15),
        "detected_20pct_one_kind": _share(outcomes, "one_kind_20pct", 50, rule, 15),
        "detected_errors_x10": _share(outcomes, "errors_x10", 50, rule, 5),
        "detected_errors_x10_10canaries": _share(outcomes, "errors_x10", 10, rule, 5),
        "median_minutes_to_detect": statistics.median(medians) if medians else None,
    }


def _rates(outcomes: Sequence[Outcome], name: str, canaries: int, rule: str) -> dict[str, Any]:
    found: dict[str, Any] = {"canaries": canaries or "5 sites"}
    if name.startswith("unchanged"):
        return found | {"false_halt_rate": _share(outcomes, name, canaries, rule)}
    return found | {
        "detected_in_15_min": _share(outcomes, name, canaries, rule, 15),
        "detected_in_30_min": _share(outcomes, name, canaries, rule, 30),
        "median_minutes": _median(outcomes, name, canaries, rule),
    }


def _share(
    outcomes: Sequence[Outcome], name: str, canaries: int, rule: str, within: int | None = None
) -> dict[str, Any]:
    return _share_of(
        [each.halts[rule] for each in outcomes if (each.scenario, each.canaries) == (name, canaries)], within
    )


def _share_of(halts: Sequence[int | None], within: int | None = None) -> dict[str, Any]:
    """The share that halted (in time), with Wilson's interval of 95 %."""
    hits = sum(1 for minutes in halts if minutes is not None and (within is None or minutes <= within))
    low, high = wilson(hits, len(halts))
    share = hits / len(halts) if halts else math.nan
    return {
        "rate": round(share, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "of": len(halts),
        **({} if within is None else {"within_minutes": within}),
    }


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _median(outcomes: Sequence[Outcome], name: str, canaries: int, rule: str) -> float | None:
    """Of the minutes until it halted; None where half of the campaigns were not halted."""
    halts = [each.halts[rule] for each in outcomes if (each.scenario, each.canaries) == (name, canaries)]
    if not halts:
        return None
    middle = statistics.median(math.inf if minutes is None else minutes for minutes in halts)
    return None if math.isinf(middle) else middle


# --- for people ---------------------------------------------------------------------------------------------------

_COLUMNS = {
    "false_halt_rate": "nothing changed",
    "detected_10pct_whole": "+10 %, 50 canaries",
    "detected_10pct_tail": "tail +10 %, 50",
    "detected_20pct_one_kind": "+20 % on one kind, 50",
    "detected_20pct_p99_10canaries": "+20 %, 10 canaries",
    "detected_errors_x10": "errors x10, 50",
}


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'halted, % of campaigns':28}" + "".join(f"{title:>23}" for title in _COLUMNS.values())]
    for name, found in {OURS: result, **result["rules"]}.items():
        lines.append(f"{name:28}" + "".join(f"{found[column]['rate'] * 100:>22.1f} " for column in _COLUMNS))
    lines.append(
        f"{'... on a harsher fleet':28}"
        + "".join(f"{result['harsh_fleet'][c]['rate'] * 100:>22.1f} " for c in _COLUMNS)
    )
    lines.append("")
    for name, found in result["beyond_the_study"].items():
        lines.append(
            f"{name:36}"
            + json.dumps({key: value["rate"] if isinstance(value, dict) else value for key, value in found.items()})
        )
    lines.append(f"\n{result['fleets']} fleets, {result['seconds']:.0f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
