"""How the campaign engine and the fleet's side of the server bear a large fleet.

`./dev bench scale [--quick] [--json] [--only planning|broker] [--devices N] [--fleet N]`. `plan_1m_s` is planning and making a
campaign over 1,000,000 devices, `tick_1m_s` the longest tick of the campaign service over it, each on SQLite and on PostgreSQL and
the longer of the two; `rollback_10k_s` is from the order to go back to the last of 10,000 simulated devices being back, through a
real broker and a real server; `lost_reports` are those that a device sent and the database does not hold exactly once. With
`--quick` both fleets are a fifth as large, and the figures say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale import databases, million, planning, rollback, ticking

DEVICES, QUICK_DEVICES = 1_000_000, 200_000
FLEET, QUICK_FLEET = 10_000, 2_000
CAMPAIGN = "digits-1.1"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fleets a fifth as large")
    parser.add_argument("--only", choices=("planning", "broker"), help="one half of the benchmark")
    parser.add_argument("--devices", type=int, help="devices in the database")
    parser.add_argument("--fleet", type=int, help="simulated devices on the broker")
    options = parser.parse_args()
    devices = options.devices or (QUICK_DEVICES if options.quick else DEVICES)
    record: dict[str, Any] = {"machine": machine()}
    if options.only != "broker":
        record |= planned(devices)
    if options.only != "planning":
        record |= rolled_back(options.fleet or (QUICK_FLEET if options.quick else FLEET))
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        for name, value in record.items():
            print(f"{name}: {value}")
    return 0


def planned(devices: int) -> dict[str, Any]:
    """Planning and ticks on each database, and the worse of each figure."""
    found: dict[str, Any] = {}
    for name in databases.NAMES:
        say(f"{name}: {devices:,} devices …")
        began = time.perf_counter()
        with databases.opened(name) as database:
            million.add_versions(database, "1.0", "1.1")
            million.add_devices(database, devices)
            say(f"{name}: fleet made in {time.perf_counter() - began:.0f} s; planning …")
            plan = planning.measure(database)
            say(f"{name}: planned in {plan['plan_s']} s; ticks …")
            ticks = ticking.measure(database, CAMPAIGN)
            say(f"{name}: longest tick {ticks['worst_s']} s")
            found[name] = {"plan": plan, "tick": ticks}
    return {
        "devices": devices,
        "plan_1m_s": max(found[name]["plan"]["plan_s"] for name in databases.NAMES),
        "tick_1m_s": max(found[name]["tick"]["worst_s"] for name in databases.NAMES),
        **found,
    }


def rolled_back(fleet: int) -> dict[str, Any]:
    """The rollback through a broker with each database, and the worse of each figure."""
    found: dict[str, Any] = {}
    for name in databases.NAMES:
        say(f"{name}: a rollback of {fleet:,} simulated devices …")
        with tempfile.TemporaryDirectory(prefix="covey-scale-") as folder:
            Path(folder).chmod(0o711)  # PostgreSQL's own user passes through it
            found[name] = rollback.measure(name, Path(folder), fleet)
        say(f"{name}: {found[name]}")
    return {
        "fleet": fleet,
        "rollback_10k_s": max(one["rollback_s"] for one in found.values()),
        "lost_reports": sum(one["lost_reports"] for one in found.values()),
        "rollback": found,
    }


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was with other things at the start."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
