"""What it costs to deliver one build to many devices.

`./dev bench delivery [--quick] [--json] [--only WAY …]`. Ways: `broadcast`, `pull`, and for comparison `push` (plain MQTT, every block to
every device, at the broadcast's rate to each) and `nginx`, by builds of 20 and 200 MB and by 1, 50 and 200 devices (push: up to 10 GB in
all); `slow`, 50 devices of which every fifth reads at a quarter of the broadcast's rate; `behind`, the largest fleet, all of which read at
a tenth of it; `flaky`, 50 devices that lose their connection every 2 s; `deltas`, what a new version costs (deltas.py). A real mosquitto,
the server's own link and delivery in one process, devices with the agent's own fetcher in another; MQTT without TLS. Server CPU is of the
delivery: orders and reports, which each device has whatever way its bytes come, are not in it. With `--quick` builds are smaller and
devices fewer, and the figures say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.delivery import deltas
from benchmarks.delivery.devices import Habit
from benchmarks.delivery.nginx import serve_files
from benchmarks.delivery.site import opened
from covey_hil.simulator.fleet import allow_files

MB = 1_000_000
WAYS = ("broadcast", "pull", "push", "nginx", "slow", "behind", "flaky", "deltas")
_HABITS = ("slow", "behind", "flaky")  # of devices; measured with one size and one fleet
SIZES, QUICK_SIZES = (20 * MB, 200 * MB), (4 * MB,)
FLEETS, QUICK_FLEETS = (1, 50, 200), (1, 10, 40)
RATE = 1e6  # bytes a second of a broadcast: 200 devices are 200 MB/s for the broker
PUSHED = 10_000 * MB + 10 * MB  # at most: what more the broker does not take at that rate piles up in its memory
FLAKY_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a small build and small fleets")
    parser.add_argument("--only", choices=WAYS, action="append", help="one way; may be given again")
    parser.add_argument("--size", type=int, action="append", help="bytes of the build; may be given again")
    parser.add_argument("--fleet", type=int, action="append", help="devices; may be given again")
    parser.add_argument("--rate", type=float, default=RATE, help="bytes a second of a broadcast")
    options = parser.parse_args()
    sizes = tuple(options.size or (QUICK_SIZES if options.quick else SIZES))
    fleets = tuple(options.fleet or (QUICK_FLEETS if options.quick else FLEETS))
    allow_files(2000)
    record = measured(tuple(options.only or WAYS), sizes, fleets, options.rate)
    record = {"machine": machine(), "quick": options.quick, "rate_bytes_per_s": options.rate, **record}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        for name, value in record.items():
            print(f"{name}: {value}")
    return 0


def measured(ways: tuple[str, ...], sizes: tuple[int, ...], fleets: tuple[int, ...], rate: float) -> dict[str, Any]:
    """The table, and the figures that are promised of it: of the largest build, and of the two largest fleets."""
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="covey-delivery-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for way in ways:
            if way == "deltas":
                say("deltas: training …")
                found["deltas"] = deltas.table(folder)
                continue
            for size in sizes if way not in _HABITS else sizes[:1]:
                for fleet in fleets if way not in _HABITS else (fleets[-1] if way == "behind" else _middle(fleets),):
                    if way == "push" and size * fleet > PUSHED:
                        say(f"push: {size / MB:g} MB to {fleet} devices is left out")
                        continue
                    say(f"{way}: {size / MB:g} MB to {fleet} devices …")
                    rows += _rows(way, folder / f"{way}-{size}-{fleet}", size, fleet, rate)
                    say(json.dumps(rows[-1]))
    casts = [row for row in rows if row["how"] == "broadcast" and row.get("habit") is None]
    if len(fleets) > 1 and casts:
        few, many = ([row for row in casts if row["devices"] == fleet][-1] for fleet in (_middle(fleets), fleets[-1]))
        found["broadcast_cpu_200_over_50"] = round(many["server_cpu_s"] / few["server_cpu_s"], 3)
        found["bytes_out_ratio"] = max(row["out_ratio"] for row in casts if row["devices"] >= _middle(fleets))
    slow = {row["habit"]: row["median_s"] for row in rows if row.get("habit") in ("slow", "none slow")}
    if len(slow) == 2:
        found["slow_penalty"] = round(slow["slow"] / slow["none slow"] - 1, 3)
    for row in rows:
        if row.get("habit") == "behind":
            found["behind_broker_mb"] = row["broker_mb"]
        if row.get("habit") == "flaky":
            found["flaky_waste"] = row["waste"]
            found["flaky_done"] = f"{row['done']} of {row['devices']}"
    return {**found, "fleets": fleets, "table": rows}


def _rows(way: str, folder: Path, size: int, fleet: int, rate: float) -> list[dict[str, Any]]:
    good = Habit()
    if way == "nginx":
        return [serve_files(folder, size, fleet)]
    if way == "slow":
        slow = [Habit(bytes_per_s=rate / 4) if number % 5 == 0 else good for number in range(fleet)]
        return [
            {"habit": name, **_measure(folder.with_name(f"{folder.name}-{at}"), size, rate, "broadcast", habits)}
            for at, (name, habits) in enumerate((("none slow", [good] * fleet), ("slow", slow)))
        ]
    if way == "behind":
        lagging = Habit(bytes_per_s=rate / 10)
        return [{"habit": way, **_measure(folder, size, rate, "broadcast", [lagging] * fleet)}]
    if way == "flaky":
        return [{"habit": way, **_measure(folder, size, rate, "broadcast", [Habit(drops_every_s=FLAKY_S)] * fleet)}]
    return [_measure(folder, size, rate, way, [good] * fleet)]


def _measure(folder: Path, size: int, rate: float, how: str, habits: list[Habit]) -> dict[str, Any]:
    if how == "broadcast" and len(habits) == 1:
        how = "pull"  # there is no broadcast for one
    with opened(how, folder, size, len(habits), rate) as measurement:
        return measurement.run(habits)


def _middle(fleets: tuple[int, ...]) -> int:
    return fleets[-2] if len(fleets) > 1 else fleets[0]


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
