"""What an agent weighs: its install, and its processes at rest with one model loaded and nobody asking.

`./dev bench footprint [--quick] [--json]`. Memory is PSS (shared pages counted by share) and RSS in MB of 10^6 bytes, the median of
samples one second apart after a warm-up; sizes are those of files, without the Python that runs them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from covey_hil.acceptance import MODEL, settled
from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import descendants, free_port, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "onnxruntime-fp32"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="30 s of rest instead of 5 minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covey-footprint-") as folder:
        record = {"install": install_size(Path(folder)), **memory(Path(folder), rest_s=30 if options.quick else 300)}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        for name, value in record.items():
            print(f"{name}: {value}")
    return 0


def install_size(folder: Path) -> dict[str, float]:
    """MB that `pip install ./contract ./agent` adds to an empty virtual environment, and the names it brings."""
    place = folder / "install"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    before = _size(place)
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", "./contract", "./agent"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    listing = subprocess.run([*pip[:-1], "list", "--format", "json"], check=True, capture_output=True).stdout
    names = sorted(row["name"] for row in json.loads(listing))
    return {"mb": round((_size(place) - before) / 1e6, 1), "packages": len(names)}


def memory(folder: Path, rest_s: float) -> dict[str, Any]:
    """PSS and RSS of the agent's processes at rest."""
    server = LocalServer(folder / "server", folder / "server.log", port=free_port())
    agent = LocalAgent("d1", folder / "d1", folder / "d1.log", telemetry_s=10.0)
    try:
        server.start()
        client = server.client()
        agent.enroll(server.url, client.create_claim_token(device="d1")["token"])
        agent.start()
        calibration, evaluation, _ = write_samples(folder)
        source = model_path("1.1")
        client.push_version(MODEL, "1.1", source, calibration=calibration, evaluation=evaluation, targets=[TARGET])
        wait_for("the build", lambda: settled(client, "1.1"), 120)
        client.assign("d1", MODEL, "1.1", TARGET)
        wait_for("the model to be active", lambda: client.device("d1")["models"][0]["state"] == "active", 120)
        time.sleep(rest_s / 2)
        gateway = agent.gateway_pid or 0
        parts = {"control": agent.child.pid, "gateway": gateway, "runner": descendants(gateway)[0]}
        samples: dict[str, list[psutil._ntuples.pfullmem]] = {name: [] for name in parts}
        for _ in range(int(rest_s / 2)):
            for name, pid in parts.items():
                samples[name].append(psutil.Process(pid).memory_full_info())
            time.sleep(1.0)
        return {
            name: {
                "pss_mb": round(statistics.median(sample.pss for sample in taken) / 1e6, 1),
                "rss_mb": round(statistics.median(sample.rss for sample in taken) / 1e6, 1),
            }
            for name, taken in samples.items()
        }
    finally:
        agent.stop()
        server.child.stop()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
