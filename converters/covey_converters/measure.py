"""Load time, first inference, latency and peak memory of one model, each in a fresh process with one thread.

`python -m covey_converters.measure JOB.json` measures and writes a `Latency` to the file that the job names. Figures of one machine
are never to be compared with another's; the source in ONNX Runtime is measured beside every build for that reason.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from covey_contract.building import Latency
from covey_contract.manifest import Runtime, TensorSpec
from covey_contract.wire import Message, decode, encode
from covey_converters.backend import Array, Built
from covey_converters.backends import BACKENDS
from covey_converters.errors import RecipeError

_MAX_RUNS = 20_000
_MIN_RUNS = 20
_WARM_UP = 5


class MeasureJob(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What to load, what to feed it (`golden`: an .npz with arrays `in/NAME`), for how long, and where the answer goes."""

    runtime: Runtime
    folder: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, str | int | float | bool] = {}
    golden: str
    seconds: float
    out: str


def measure(runtime: Runtime, built: Built, golden: Path, seconds: float, work: Path) -> Latency:
    """Measure in a process of its own; raises `RecipeError` if the build does not load or run there."""
    job = MeasureJob(
        runtime=runtime,
        folder=str(built.folder),
        entry=built.entry,
        inputs=built.inputs,
        outputs=built.outputs,
        options=built.options,
        golden=str(golden),
        seconds=seconds,
        out=str(work / "latency.json"),
    )
    (work / "measure.json").write_bytes(encode(job))
    command = [sys.executable, "-m", "covey_converters.measure", str(work / "measure.json")]
    done = subprocess.run(command, stdout=sys.stderr, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise RecipeError(f"the build does not run in a process of its own (exit status {done.returncode})")
    return msgspec.json.decode(Path(job.out).read_bytes(), type=Latency)


def main(path: str) -> None:
    job = decode(MeasureJob, Path(path).read_bytes())
    backend = BACKENDS[job.runtime]
    built = Built(
        folder=Path(job.folder),
        files=(job.entry,),
        entry=job.entry,
        inputs=job.inputs,
        outputs=job.outputs,
        options=job.options,
    )
    with np.load(job.golden, allow_pickle=False) as arrays:
        stacked = {spec.name: arrays[f"in/{spec.name}"] for spec in job.inputs}
    feeds = [
        {name: array[index] for name, array in stacked.items()} for index in range(len(next(iter(stacked.values()))))
    ]
    importlib.import_module(backend.module)
    began = time.perf_counter()
    session = backend.open(built, threads=1)
    loaded = time.perf_counter()
    session.run(feeds[0])
    answered = time.perf_counter()
    for _ in range(_WARM_UP):
        session.run(feeds[0])
    runs = _timed(session.run, feeds, job.seconds)
    latency = Latency(
        p50_ms=round(float(np.quantile(runs, 0.5)), 4),
        p99_ms=round(float(np.quantile(runs, 0.99)), 4),
        load_ms=round((loaded - began) * 1e3, 2),
        first_ms=round((answered - loaded) * 1e3, 3),
        peak_rss_mb=peak_rss_mb(),
        machine=machine(),
    )
    Path(job.out).write_bytes(msgspec.json.encode(latency))


def _timed(run: Callable[[dict[str, Array]], object], feeds: list[dict[str, Array]], seconds: float) -> list[float]:
    """Milliseconds of each run, until `seconds` are over and enough were made."""
    runs: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(runs) < _MAX_RUNS and (time.perf_counter() < deadline or len(runs) < _MIN_RUNS):
        feed = feeds[len(runs) % len(feeds)]
        began = time.perf_counter()
        run(feed)
        runs.append((time.perf_counter() - began) * 1e3)
    return runs


def peak_rss_mb() -> float:
    """Highest resident memory of this process in MB. Not getrusage: that counts what the parent had when it forked."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(match[1]) * 1024 / 1e6, 1) if match else 0.0


def machine() -> str:
    """CPU model and number of cores."""
    info = Path("/proc/cpuinfo").read_text(errors="replace")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    return f"{match[1].strip() if match else 'unknown CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main(sys.argv[1])
