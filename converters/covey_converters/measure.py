"""Load time, first inference, latency and peak memory of a build and of its source, with one thread, in a process of their own.

`python -m covey_converters.measure JOB.json` measures and writes a `Latency` of each to the file that the job names. They take turns, so that a
neighbour's noise meets all alike: their ratio is worth more than any figure of its own. Memory is that of a process with nothing but numpy and
the runtimes in it, and what loading and running one model added. Figures of one machine are never to be compared with another's.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from covey_contract.building import Latency
from covey_contract.manifest import Runtime, TensorSpec
from covey_contract.wire import Message, decode, encode
from covey_converters.backend import Array, Built, Session
from covey_converters.backends import BACKENDS
from covey_converters.errors import RecipeError

_MAX_RUNS = 20_000
_MIN_RUNS = 2  # of a turn
_WARM_UP = 5
_TURNS = 10


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model: the runtime, and what it is given."""

    runtime: Runtime
    folder: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, str | int | float | bool] = {}


class MeasureJob(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What to load, what to feed it (`golden`: an .npz with arrays `in/NAME`), for how long each, and where the answer goes."""

    loads: tuple[Load, ...]
    golden: str
    seconds: float
    out: str


@dataclass(frozen=True)
class Measured:
    """One of those that are measured together."""

    runtime: Runtime
    built: Built


def measure(together: Sequence[Measured], golden: Path, seconds: float, work: Path) -> list[Latency]:
    """Measure each for so many seconds, in turns; raises `RecipeError` if one does not load or run in a process of its own."""
    loads = tuple(
        Load(
            runtime=one.runtime,
            folder=str(one.built.folder),
            entry=one.built.entry,
            inputs=one.built.inputs,
            outputs=one.built.outputs,
            options=one.built.options,
        )
        for one in together
    )
    job = MeasureJob(loads=loads, golden=str(golden), seconds=seconds, out=str(work / "latency.json"))
    (work / "measure.json").write_bytes(encode(job))
    command = [sys.executable, "-m", "covey_converters.measure", str(work / "measure.json")]
    done = subprocess.run(command, stdout=sys.stderr, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise RecipeError(f"the build does not run in a process of its own (exit status {done.returncode})")
    return msgspec.json.decode(Path(job.out).read_bytes(), type=list[Latency])


def main(path: str) -> None:
    job = decode(MeasureJob, Path(path).read_bytes())
    with np.load(job.golden, allow_pickle=False) as arrays:
        stacked = {name: arrays[f"in/{name}"] for name in (spec.name for spec in job.loads[0].inputs)}
    count = len(next(iter(stacked.values())))
    feeds: list[dict[str, Array]] = [{name: array[index] for name, array in stacked.items()} for index in range(count)]
    # Importing a runtime is not loading a model.
    for load in job.loads:
        importlib.import_module(BACKENDS[load.runtime].module)
    bare = _memory_mb("VmRSS")
    loaded = [_Loaded(load, feeds, bare) for load in job.loads]
    for _ in range(_TURNS):
        for one in loaded:
            one.turn(job.seconds / _TURNS)
    Path(job.out).write_bytes(msgspec.json.encode([one.latency() for one in loaded]))


class _Loaded:
    """A loaded model and the times of its runs."""

    def __init__(self, load: Load, feeds: list[dict[str, Array]], bare_mb: float) -> None:
        built = Built(
            folder=Path(load.folder),
            files=(load.entry,),
            entry=load.entry,
            inputs=load.inputs,
            outputs=load.outputs,
            options=load.options,
        )
        before = _begin_peak()
        began = time.perf_counter()
        self._session: Session = BACKENDS[load.runtime].open(built, threads=1)
        opened = time.perf_counter()
        self._session.run(feeds[0])
        self._load_ms, self._first_ms = (opened - began) * 1e3, (time.perf_counter() - opened) * 1e3
        for number in range(max(_WARM_UP, len(feeds))):
            self._session.run(feeds[number % len(feeds)])
        self._peak_mb = round(bare_mb + _memory_mb("VmHWM") - before, 1)
        self._feeds = feeds
        self._runs: list[float] = []
        self._used_s = 0.0

    def turn(self, seconds: float) -> None:
        # The first one after a pause finds caches cold; an application that asks all the time does not.
        self._session.run(self._feeds[0])
        used = time.process_time()
        self._runs += _timed(self._session.run, self._feeds, seconds)
        # Of the whole turn: for a process with several threads the kernel's count moves in steps longer than many an inference.
        self._used_s += time.process_time() - used

    def latency(self) -> Latency:
        return Latency(
            p50_ms=round(float(np.quantile(self._runs, 0.5)), 4),
            p99_ms=round(float(np.quantile(self._runs, 0.99)), 4),
            cpu_ms=round(self._used_s * 1e3 / len(self._runs), 4),
            load_ms=round(self._load_ms, 2),
            first_ms=round(self._first_ms, 3),
            peak_rss_mb=self._peak_mb,
            machine=machine(),
        )


def _timed(run: Callable[[dict[str, Array]], object], feeds: list[dict[str, Array]], seconds: float) -> list[float]:
    """Milliseconds of each run, until `seconds` are over and enough were made."""
    runs: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(runs) < _MAX_RUNS // _TURNS and (time.perf_counter() < deadline or len(runs) < _MIN_RUNS):
        feed = feeds[len(runs) % len(feeds)]
        began = time.perf_counter()
        run(feed)
        runs.append((time.perf_counter() - began) * 1e3)
    return runs


def _begin_peak() -> float:
    """Let the highest resident memory begin anew from what is resident now, in MB; where the kernel does not let us, it goes on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _memory_mb("VmHWM")
    return _memory_mb("VmRSS")


def _memory_mb(field: str) -> float:
    """Of this process, in MB. Not getrusage: that counts what the parent had when it forked."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 / 1e6 if match else 0.0


def machine() -> str:
    """CPU model and number of cores."""
    info = Path("/proc/cpuinfo").read_text(errors="replace")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    return f"{match[1].strip() if match else 'unknown CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main(sys.argv[1])
