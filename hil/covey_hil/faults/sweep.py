"""Every system call of every operation that touches the state folder, one after the other: killed at it, or failed by it.

A point is one call and one fault. After it the agent is started anew on what it left, and must come to where it was going; `judge`
says what must hold meanwhile. What is swept is what a first, undisturbed run of the operation was seen to do.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import msgspec

from covey_contract.strenum import StrEnum
from covey_hil.faults import judge
from covey_hil.faults.bench import Bench, Outlived
from covey_hil.faults.device import MODEL
from covey_hil.faults.journal import Lost, Served, Trouble
from covey_hil.faults.operations import BY_NAME
from covey_hil.faults.strace import READING, WRITING, Call, Injection
from covey_hil.faults.zygote import Job, Phase

_MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of our own in it, made by tempfile
# A disk that is full stays full for so many rounds, until the device is started anew with room.
_FULL_ROUNDS = 12
_ROUNDS = 200
# A device that lost its power is not back at once.
_AWAY_S = 600.0
_WRITING = frozenset(word.lstrip("?") for word in WRITING.split())
_READING = frozenset(word.lstrip("?") for word in READING.split())
_TAKES_ROOM = frozenset(
    {"openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat"}
    | {"mkdir", "mkdirat", "ftruncate", "fallocate", "symlink", "symlinkat"}
)
# On a full disk these fail, and go on failing.
_FILLING = frozenset({"write", "pwrite64", "fallocate", "mkdir", "mkdirat", "linkat"})


class Fault(StrEnum):
    KILL = "kill"  # of control; the gateway goes on
    RESET = "reset"  # of everything: the gateway has nothing loaded
    POWER = "power"  # of all there is: the disk keeps what had reached it
    ENOSPC = "enospc"
    FULL = "full"  # ENOSPC from here on, until the next start
    EIO = "eio"


_WHAT = {
    Fault.KILL: "signal=KILL",
    Fault.RESET: "signal=KILL",
    Fault.POWER: "signal=KILL",
    Fault.ENOSPC: "error=ENOSPC",
    Fault.EIO: "error=EIO",
}
_DEATHS = (Fault.KILL, Fault.RESET, Fault.POWER)
FAULTS = {
    Fault.KILL: "SIGKILL of the control process; the gateway goes on",
    Fault.RESET: "SIGKILL of all processes: the gateway starts with nothing",
    Fault.POWER: "power cut: as reset, on an ext4 file system that keeps only what had reached its disk",
    Fault.ENOSPC: "the call fails with ENOSPC, once",
    Fault.FULL: "this call and all later ones that take room fail with ENOSPC, until the next start",
    Fault.EIO: "the call fails with EIO, once",
}


@dataclass(frozen=True)
class Point:
    """`full`: of each call that takes room, the number from which on the disk is full."""

    operation: str
    fault: Fault
    call: Call
    full: tuple[tuple[str, int], ...] = ()

    @property
    def injections(self) -> tuple[Injection, ...]:
        if self.fault is Fault.FULL:
            return tuple(Injection(name, "error=ENOSPC", number, lasting=True) for name, number in self.full)
        return (Injection(self.call.name, _WHAT[self.fault], self.call.number),)

    def __str__(self) -> str:
        return f"{self.operation}: {self.fault} at {self.call.name} #{self.call.number} ({self.call.words[:120]})"


class Failure(msgspec.Struct, frozen=True):
    """A point after which something did not hold. `wrong`: what."""

    point: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    point: Point
    reached: bool
    wrong: tuple[str, ...] = ()


def points_of(bench: Bench, operation: str, seen_by: Callable[[Outlived], None] | None = None) -> list[Point]:
    """What can be tried; raises `AssertionError` if the operation does not even work undisturbed. `seen_by` is given what was told."""
    outlived = bench.prepare(operation)
    ran, tracer = bench.run(_job(Phase.DURING, operation, bench), outlived, trace=True)
    wrong = [entry.what for entry in outlived.entries if isinstance(entry, Trouble)]
    if not ran.settled or wrong or tracer is None:
        raise AssertionError(f"{operation} does not work undisturbed: {ran} {wrong}")
    if seen_by is not None:
        seen_by(outlived)
    points: list[Point] = []
    seen = Counter[str]()
    for call in tracer.calls():
        full = tuple((name, seen[name] + 1) for name in sorted(_FILLING))
        seen[call.name] += 1
        points += [Point(operation, fault, call, full) for fault in _faults(call, str(bench.state))]
    return points


def _faults(call: Call, state: str) -> Iterator[Fault]:
    """Which faults make sense at a call: of our files, the log apart, which nothing depends on."""
    if call.name == "sendto":
        if any(f'\\"{kind}\\"' in call.words for kind in ("Served", "Sent", "Written")):
            yield from _DEATHS
        return
    if state not in call.words or f"{state}/log/" in call.words:
        return
    opens_to_read = call.name == "openat" and "O_CREAT" not in call.words
    if call.name in _WRITING and not opens_to_read:
        yield from _DEATHS
        if call.name in _TAKES_ROOM:
            yield Fault.ENOSPC
        if call.name in _FILLING:
            yield Fault.FULL
    if call.name in _WRITING or call.name in _READING:
        yield Fault.EIO


def try_point(bench: Bench, point: Point) -> Outcome:
    if point.fault is not Fault.POWER:
        return _try(bench, point, bench.prepare(point.operation))
    try:
        return _try(bench, point, bench.prepare_disk(point.operation))
    finally:
        bench.give_back_disk()


def _try(bench: Bench, point: Point, outlived: Outlived) -> Outcome:
    operation = BY_NAME[point.operation]
    job = _job(Phase.DURING, point.operation, bench)
    dies = point.fault in _DEATHS
    lasting = point.fault is Fault.FULL
    if lasting:
        job = msgspec.structs.replace(job, rounds=_FULL_ROUNDS, strict=False)
    ran, _ = bench.run(job, outlived, injections=point.injections)
    reached = ran.killed if dies else ran.injected > 0
    wrong: list[str] = []
    if not (ran.settled or ran.killed or ran.down or lasting):
        wrong.append("the device did not come to its end")
    if ran.down and point.fault in (Fault.ENOSPC, Fault.FULL):
        wrong.append(f"a full disk kept it from starting: {ran.down}")
    models = outlived.served.models
    served = models[MODEL].active if MODEL in models else None
    if lasting and served not in operation.may_serve:
        wrong.append("on a full disk nothing served")
    if point.fault is Fault.POWER:
        bench.disk.cut_power()
    if point.fault in (Fault.RESET, Fault.POWER):
        outlived.served = Served({})
        outlived.note(Lost())
        outlived.now += _AWAY_S
    after, _ = bench.run(_job(Phase.AFTER, point.operation, bench), outlived)
    if not after.settled or after.down:
        wrong.append(f"started anew, it did not come to its end {after.down}")
    wrong += [entry.what for entry in outlived.entries if isinstance(entry, Trouble)]
    wrong += judge.of_journal(outlived.entries, operation)
    return Outcome(point, reached, tuple(dict.fromkeys(wrong)))


@contextmanager
def bench_in_memory() -> Iterator[Bench]:
    """A bench in a folder of its own, on a file system in memory where there is one: nothing here is about the speed of disks."""
    parent = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="covey-faults-", dir=parent) as folder, Bench(Path(folder)) as bench:
        yield bench


@dataclass
class Swept:
    """What came of it. `there_are`: points in all; `missed`: those that the operation did not come to again."""

    there_are: int
    points: Counter[tuple[str, Fault]]
    missed: list[str]
    failures: list[Failure]


def sweep(
    say: Callable[[str], None],
    *,
    operations: Sequence[str] = tuple(BY_NAME),
    faults: Sequence[Fault] = tuple(Fault),
    most: int | None = None,
    workers: int = 2,
) -> Swept:
    """Try all points, or `most` of them drawn evenly."""
    with ExitStack() as held:
        benches = SimpleQueue[Bench]()
        for _ in range(workers):
            benches.put(held.enter_context(bench_in_memory()))
        bench = benches.get()
        points = [point for name in operations for point in points_of(bench, name) if point.fault in faults]
        benches.put(bench)
        swept = Swept(len(points), Counter(), [], [])
        if most is not None and most < len(points):
            points = [points[at * len(points) // most] for at in range(most)]
        say(f"{len(points)} points in {len(operations)} operations")

        def one(point: Point) -> Outcome:
            bench = benches.get()
            try:
                return try_point(bench, point)
            finally:
                benches.put(bench)

        pool = ThreadPoolExecutor(workers)
        held.callback(pool.shutdown, cancel_futures=True)
        for number, outcome in enumerate(pool.map(one, points), 1):
            point = outcome.point
            if not outcome.reached:
                swept.missed.append(str(point))
            else:
                swept.points[point.operation, point.fault] += 1
            if outcome.wrong:
                swept.failures.append(Failure(str(point), outcome.wrong))
                say(f"FAILED {point}: {'; '.join(outcome.wrong)}")
            if number % 500 == 0:
                say(f"{number} of {len(points)}, {len(swept.failures)} failed")
    return swept


def _job(phase: Phase, operation: str, bench: Bench) -> Job:
    return Job(phase=phase, operation=operation, folder=str(bench.state), rounds=_ROUNDS)
