"""What an agent weighs: its install, its processes at rest with one model loaded and nobody asking, and how soon it answers.

Memory is PSS (shared pages counted by share) and RSS in MB of 10^6 bytes, by the method that AWS publishes for Greengrass: five minutes of
warm-up, then ten minutes of samples ten seconds apart, of which this is the median. Sizes are those of files, without the Python that
runs them. The start is from the command to the first answer of a model that the device had before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from covey_agent.client import Client, ClientError
from covey_hil.acceptance import MODEL, settled
from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import descendants, wait_for
from covey_server.fleet.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "onnxruntime-fp32"
WARM_UP_S, SAMPLES_S, EVERY_S = 300.0, 600.0, 10.0
QUICK_WARM_UP_S, QUICK_SAMPLES_S, QUICK_EVERY_S = 15.0, 15.0, 1.0
STARTS = 5
IMPORTS = 7


def run(folder: Path, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    install = install_size(folder)
    say(f"install: {install}")
    measured = processes(folder, quick=quick)
    return {
        "control_pss_mb": measured["control"]["pss_mb"],
        "gateway_pss_mb": measured["gateway"]["pss_mb"],
        "install_mb": install["mb"],
        "start_to_first_answer_s": measured["start_to_first_answer_s"],
        "control_import_s": import_time(),
        "warm_up_s": QUICK_WARM_UP_S if quick else WARM_UP_S,
        "samples_s": QUICK_SAMPLES_S if quick else SAMPLES_S,
        "install": install,
        "processes": measured,
    }


def import_time() -> float:
    """Seconds from starting Python to having imported all of the control process, the best of several."""
    taken = []
    for _ in range(IMPORTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import covey_agent.daemon"], check=True)
        taken.append(time.perf_counter() - began)
    return round(min(taken), 3)


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


def processes(folder: Path, *, quick: bool) -> dict[str, Any]:
    """PSS and RSS of the agent's processes at rest, and its start to the first answer."""
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
        time.sleep(QUICK_WARM_UP_S if quick else WARM_UP_S)
        gateway = agent.gateway_pid or 0
        parts = {"control": agent.child.pid, "gateway": gateway, "runner": descendants(gateway)[0]}
        samples: dict[str, list[psutil._ntuples.pfullmem]] = {name: [] for name in parts}
        until = time.monotonic() + (QUICK_SAMPLES_S if quick else SAMPLES_S)
        while time.monotonic() < until:
            for name, pid in parts.items():
                samples[name].append(psutil.Process(pid).memory_full_info())
            time.sleep(QUICK_EVERY_S if quick else EVERY_S)
        measured: dict[str, Any] = {
            name: {
                "pss_mb": round(statistics.median(sample.pss for sample in taken) / 1e6, 1),
                "rss_mb": round(statistics.median(sample.rss for sample in taken) / 1e6, 1),
            }
            for name, taken in samples.items()
        }
        measured["start_to_first_answer_s"] = round(statistics.median(first_answer(agent) for _ in range(STARTS)), 2)
        return measured
    finally:
        agent.stop()
        server.child.stop()


def first_answer(agent: LocalAgent) -> float:
    """Seconds from the agent's command to its first answer, after everything of it was killed."""
    agent.power_off()
    began = time.monotonic()
    agent.start()
    with Client(f"127.0.0.1:{agent.port}") as client:
        wait_for("the first answer", lambda: _answers(client), 60, every_s=0.01)
    return time.monotonic() - began


def _answers(client: Client) -> bool:
    try:
        (only,) = client.metadata(MODEL)["inputs"]
        shape = [max(int(size), 1) for size in only["shape"]]
        client.infer(MODEL, {only["name"]: np.zeros(shape, np.float32)})
    except ClientError:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
