"""Constant load from a process of its own: `python -m benchmarks.agent.load ADDRESS RATE OUT FOLDER…` until its input ends.

Open loop: request k is due at its time whatever became of those before, and its latency counts from that time, so that a stall
costs every request that fell into it. Each answer is compared with what the bare runtime says for the build that gave it.
FOLDERs hold `expected.npy`; OUT becomes a NumPy archive of one row a request (see `Record`).
"""

from __future__ import annotations

import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.agent.builds import MODEL, MadeBuild, inputs
from covey_agent.client import Client, ClientError

# More than can be under way before latencies are in seconds.
WORKERS = 12
FAILED, NOT_KNOWN = -1, -2
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """Monotonic seconds; `build`: index of the build that answered, FAILED, or NOT_KNOWN (none of ours); `wrong`: not its answer."""

    due: Numbers
    sent: Numbers
    done: Numbers
    build: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]

    @property
    def latency(self) -> Numbers:
        return self.done - self.due

    @property
    def failed(self) -> int:
        return int((self.build == FAILED).sum())


class Load:
    """The load process, seen by who starts it."""

    def __init__(self, address: str, rate: float, builds: list[MadeBuild], out: Path) -> None:
        self._out = out
        for build in builds:
            np.save(build.folder / "expected.npy", build.expected)
        places = [f"{build.digest}={build.folder}" for build in builds]
        words = [sys.executable, "-m", "benchmarks.agent.load", address, str(rate), str(out), *places]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE)

    def check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError("the load has ended")

    def stop(self) -> Record:
        self._process.communicate(timeout=120)
        with np.load(self._out) as archive:
            return Record(**{name: archive[name] for name in ("due", "sent", "done", "build", "wrong")})


def main() -> int:
    address, rate, out, *places = sys.argv[1:]
    digests = [place.partition("=")[0] for place in places]
    expected = [np.load(Path(place.partition("=")[2]) / "expected.npy") for place in places]
    given = inputs()
    began = time.monotonic() + 0.2
    stop = threading.Event()
    rows: list[tuple[float, float, float, int, bool]] = []
    numbers = iter(range(1 << 60))
    lock = threading.Lock()

    def work() -> None:
        with Client(address, timeout_s=30) as client:
            while not stop.is_set():
                with lock:
                    number = next(numbers)
                due = began + number / float(rate)
                time.sleep(max(due - time.monotonic(), 0))
                sent = time.monotonic()
                which = number % len(given)
                try:
                    answer = client.infer(MODEL, {"image": given[which]})
                except ClientError as error:
                    print(f"failed: {error}", file=sys.stderr, flush=True)
                    rows.append((due, sent, time.monotonic(), FAILED, False))
                    continue
                done = time.monotonic()
                build = digests.index(answer.build) if answer.build in digests else NOT_KNOWN
                wrong = build == NOT_KNOWN or not _agrees(expected[build][which], answer["scores"])
                rows.append((due, sent, done, build, wrong))

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    select.select([sys.stdin], [], [])
    stop.set()
    for worker in workers:
        worker.join()
    columns: list[Any] = [np.array(column) for column in zip(*sorted(rows), strict=True)]
    np.savez(out, **dict(zip(("due", "sent", "done", "build", "wrong"), columns, strict=True)))
    return 0


def _agrees(wanted: npt.NDArray[np.float32], got: npt.NDArray[Any]) -> bool:
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, rtol=1e-3, atol=1e-2))


if __name__ == "__main__":
    raise SystemExit(main())
