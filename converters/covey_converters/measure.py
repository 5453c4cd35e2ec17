"""Load time, first inference, latency and peak memory of a build and of its source, each in a fresh process with one thread.

The two take turns, so that a neighbour's noise meets both alike: their ratio is worth more than either figure. A process is
`python -m covey_converters.measure JOB.json`; it is told on its standard input what to do next (`load`, `run SECONDS`, `end`), says `done`
after each, and leaves a `Latency` in the file that the job names. Figures of one machine are never to be compared with another's.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
_DONE = "done"


class MeasureJob(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What to load, what to feed it (`golden`: an .npz with arrays `in/NAME`), and where the answer goes."""

    runtime: Runtime
    folder: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, str | int | float | bool] = {}
    golden: str
    out: str


@dataclass(frozen=True)
class Measured:
    """One of those that are measured together: the runtime, and what it is given."""

    runtime: Runtime
    built: Built


def measure(together: Sequence[Measured], golden: Path, seconds: float, work: Path) -> list[Latency]:
    """Measure each for so many seconds, in turns; raises `RecipeError` if one does not load or run in a process of its own."""
    jobs = [_job(one, golden, work / f"latency-{number}.json") for number, one in enumerate(together)]
    with ExitStack() as open_processes:
        started = [
            open_processes.enter_context(_Process(job, work / f"measure-{n}.json")) for n, job in enumerate(jobs)
        ]
        for process in started:
            process.wait()
        # Loading is timed, so that nobody loads beside another.
        for process in started:
            process.tell("load")
        for _ in range(_TURNS):
            for process in started:
                process.tell(f"run {seconds / _TURNS}")
        for process in started:
            process.tell("end")
    return [msgspec.json.decode(Path(job.out).read_bytes(), type=Latency) for job in jobs]


def _job(one: Measured, golden: Path, out: Path) -> MeasureJob:
    return MeasureJob(
        runtime=one.runtime,
        folder=str(one.built.folder),
        entry=one.built.entry,
        inputs=one.built.inputs,
        outputs=one.built.outputs,
        options=one.built.options,
        golden=str(golden),
        out=str(out),
    )


class _Process:
    """One process that measures; it ends with the block."""

    def __init__(self, job: MeasureJob, path: Path) -> None:
        self._job, self._path = job, path

    def __enter__(self) -> _Process:
        self._path.write_bytes(encode(self._job))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "covey_converters.measure", str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it was started with a pipe
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        self.wait()

    def wait(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # it was started with a pipe
        if self._process.stdout.readline().strip() != _DONE:
            code = self._process.wait()
            raise RecipeError(f"the build does not run in a process of its own (exit status {code})")


def main(path: str) -> None:
    job = decode(MeasureJob, Path(path).read_bytes())
    # Toolchains print wherever they like. The pipe to the parent is ours alone.
    pipe = os.dup(1)
    os.dup2(2, 1)
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
    count = len(next(iter(stacked.values())))
    feeds: list[dict[str, Array]] = [{name: array[index] for name, array in stacked.items()} for index in range(count)]
    # Importing a runtime is not loading a model.
    importlib.import_module(backend.module)
    with os.fdopen(pipe, "w", buffering=1) as answers:
        answers.write(f"{_DONE}\n")
        loaded: _Loaded | None = None
        for line in sys.stdin:
            what, _, amount = line.strip().partition(" ")
            if what == "load":
                loaded = _Loaded(lambda: backend.open(built, threads=1), feeds)
            elif what == "run" and loaded is not None:
                loaded.turn(float(amount))
            elif what == "end" and loaded is not None:
                Path(job.out).write_bytes(msgspec.json.encode(loaded.latency()))
            answers.write(f"{_DONE}\n")


class _Loaded:
    """A loaded build and the times of its runs."""

    def __init__(self, load: Callable[[], Session], feeds: list[dict[str, Array]]) -> None:
        began = time.perf_counter()
        self._session = load()
        loaded = time.perf_counter()
        self._session.run(feeds[0])
        self._load_ms, self._first_ms = (loaded - began) * 1e3, (time.perf_counter() - loaded) * 1e3
        for _ in range(_WARM_UP):
            self._session.run(feeds[0])
        self._feeds = feeds
        self._runs: list[tuple[float, float]] = []

    def turn(self, seconds: float) -> None:
        # The first one after a pause finds caches cold; an application that asks all the time does not.
        self._session.run(self._feeds[0])
        self._runs += _timed(self._session.run, self._feeds, seconds)

    def latency(self) -> Latency:
        clock, processor = np.array(self._runs).T
        return Latency(
            p50_ms=round(float(np.quantile(clock, 0.5)), 4),
            p99_ms=round(float(np.quantile(clock, 0.99)), 4),
            cpu_ms=round(float(np.quantile(processor, 0.5)), 4),
            load_ms=round(self._load_ms, 2),
            first_ms=round(self._first_ms, 3),
            peak_rss_mb=peak_rss_mb(),
            machine=machine(),
        )


def _timed(
    run: Callable[[dict[str, Array]], object], feeds: list[dict[str, Array]], seconds: float
) -> list[tuple[float, float]]:
    """Milliseconds of each run, on the clock and of the processor, until `seconds` are over and enough were made."""
    runs: list[tuple[float, float]] = []
    deadline = time.perf_counter() + seconds
    while len(runs) < _MAX_RUNS // _TURNS and (time.perf_counter() < deadline or len(runs) < _MIN_RUNS):
        feed = feeds[len(runs) % len(feeds)]
        used, began = time.process_time(), time.perf_counter()
        run(feed)
        ended = time.perf_counter()
        runs.append(((ended - began) * 1e3, (time.process_time() - used) * 1e3))
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
