"""`./dev bench verdicts [--quick] [--json] [--fleets N] [--keep FILE] [--out FILE]`: how often each rule halts campaigns, rightly and wrongly.

Every fleet is drawn anew from a seed of its own; the seeds of the table are not those that anything was chosen by.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.verdicts.figures import OURS, summary
from benchmarks.verdicts.simulate import simulate

QUICK_FLEETS, FULL_FLEETS = 8, 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev bench verdicts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few fleets: minutes instead of an hour, wide intervals")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument("--fleets", type=int, metavar="N", help="simulated fleets")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="what is done, to go on from when run again")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the object there too")
    options = parser.parse_args(arguments)
    fleets = options.fleets or (QUICK_FLEETS if options.quick else FULL_FLEETS)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    done = simulate(fleets, options.jobs, options.keep)
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
