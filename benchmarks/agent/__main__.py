"""What the agent's data plane does, measured: `./dev bench agent [--quick] [--json] [--only swap,crash,overhead,footprint]`.

`--quick`: 60 swaps, 20 crashes, and a footprint after half a minute of rest; the figures that count are those of a full run on a machine
that does nothing else. The load, the gateway and its runners share the machine's cores, as they do on a device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.agent import crash, footprint, overhead, swap

PARTS = ("swap", "overhead", "footprint", "crash")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench agent", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter: minutes instead of an hour and a half")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, by comma (default: %(default)s)")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: no such part")
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "swap": lambda folder: swap.run(
            folder, swaps=60 if options.quick else 1000, steady_s=10 if options.quick else 30, say=say
        ),
        "overhead": lambda folder: overhead.run(folder, requests=500 if options.quick else 5000, say=say),
        "footprint": lambda folder: footprint.run(folder, quick=options.quick, say=say),
        "crash": lambda folder: crash.run(folder, crashes=20 if options.quick else 500, say=say),
    }
    record: dict[str, Any] = {"quick": options.quick, "machine": _machine()}
    for name in wanted:
        say(f"{name} …")
        with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
            record[name] = parts[name](Path(folder))
        if not options.json:
            print(f"{name}: {json.dumps(record[name], indent=2)}", flush=True)
    if options.json:
        print(json.dumps(record, indent=2))
    return 0


def _machine() -> dict[str, Any]:
    """Figures are worth what is said of the machine that gave them: also how busy it was."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": os.cpu_count(), "load_1min_before": round(os.getloadavg()[0], 2)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
