"""What the repository of releases costs: to write, to sign anew, to store, and for a device to follow.

`./dev bench releases [--targets N] [--json]`. A family of N builds (10,000) is released in one edition, then one build is added. Each of
the steps is timed once; a device's steps five times, of which the median counts. Times are of one process on this machine, with every
file synced to its disk; sizes are in bytes as they travel.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent.tuf.folder import MetadataFolder
from covey_agent.tuf.source import FolderSource
from covey_agent.tuf.updater import Updater
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import create_for_development
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import Policy
from covey_server.releases.release import Release
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf

MODEL = "digits"
BUILDS_A_VERSION = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=10_000, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covey-releases-") as folder:
        record = measure(Path(folder), options.targets)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        for name, value in record.items():
            print(f"{name:32} {value:,.1f}")
    return 0


def measure(folder: Path, targets: int) -> dict[str, float]:
    """Milliseconds end in `_ms`, bytes in `_bytes`."""
    releases = Releases(
        Shelf(folder / "releases"), Keyring.load(folder / "keys"), Policy(), lambda: time.time_ns() // 10**6
    )
    keys = SigningKeys(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    create_for_development(releases, keys)
    builds = [build_of(number) for number in range(targets)]
    record: dict[str, float] = {"targets": targets}
    record["release_all_ms"] = timed(lambda: releases.release(builds))
    record["bins"] = len(releases.edition().family(MODEL))
    record["release_one_more_ms"] = timed(lambda: releases.release([build_of(targets)]))
    record["server_peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    again = Releases(releases.shelf, releases.keyring, releases.policy, lambda: time.time_ns() // 10**6)
    record["release_after_restart_ms"] = timed(lambda: again.release([build_of(targets + 1)]))
    metadata = folder / "releases" / "metadata"
    for file in sorted(metadata.iterdir(), key=lambda file: file.stat().st_mtime):
        role = file.name.removesuffix(".json").split(".", 1)[-1]
        record[f"{'bin' if role.count('~') == 2 else role}_bytes"] = file.stat().st_size
    record["repository_bytes"] = sum(path.stat().st_size for path in metadata.iterdir())
    root = (metadata / "1.root.json").read_bytes()
    first, second, found = [], [], []
    for number in range(5):
        device = MetadataFolder(folder / f"device-{number}")

        def updater(device: MetadataFolder = device) -> Updater:
            return Updater(device, FolderSource(metadata), datetime.now(UTC), embedded=root)

        first.append(timed(lambda: updater().refresh()))
        last = updater()
        second.append(timed(last.refresh))
        path = build_of(number * 7 % targets).path
        found.append(timed(lambda last=last, path=path: last.find(path)))  # type: ignore[misc]
        record["device_folder_bytes"] = sum(file.stat().st_size for file in device.path.glob("*.json"))
    record["device_first_refresh_ms"] = statistics.median(first)
    record["device_refresh_ms"] = statistics.median(second)
    record["device_first_find_ms"] = statistics.median(found)
    return record


def build_of(number: int) -> Release:
    version, target = f"1.{number // BUILDS_A_VERSION}", f"target-{number % BUILDS_A_VERSION}"
    manifest = json.dumps({"model": MODEL, "version": version, "target": target}).encode().ljust(2000)
    return Release(MODEL, version, target, manifest, {"runtime": "tflite", "precision": "int8"})


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    raise SystemExit(main())
