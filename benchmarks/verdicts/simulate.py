"""Many fleets, each in a process of its own, drawn from seeds of their own.

A module apart from the command, since processes that are spawned import what they run by its name. What is done is kept line by line in
a file, if one is given: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.verdicts.fleet import HARSH, Model
from benchmarks.verdicts.scenarios import Outcome, run

# Rules and their numbers were chosen on seeds from 77,000,000 on; these are for the table alone.
SEED = 500_000_000
HARSH_SEED = 600_000_000


class Task(msgspec.Struct, frozen=True):
    """One fleet to be simulated; `beyond`: with the campaigns that the study left out, too."""

    seed: int
    harsh: bool
    beyond: bool


class Done(msgspec.Struct, frozen=True):
    task: Task
    outcomes: list[Outcome]


def simulate(fleets: int, jobs: int, kept: Path | None = None) -> list[Done]:
    """Every fifth fleet has a harsher one beside it, and every second one runs what the study left out, too. Whoever interrupts it
    gets the table of what was done."""
    tasks = []
    for number in range(fleets):
        tasks.append(Task(SEED + number, harsh=False, beyond=number % 2 == 0))
        if number % 5 == 0:
            tasks.append(Task(HARSH_SEED + number, harsh=True, beyond=False))
    done = [each for each in _read(kept) if each.task in tasks]
    left = [task for task in tasks if task not in {each.task for each in done}]
    if not left:
        return done
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(left)), _leave_interrupts) as pool:
        try:
            for each in pool.imap_unordered(_run, left):
                done.append(each)
                _append(kept, each)
                if len(done) % 10 == 0 or len(done) == len(tasks):
                    text = f"{len(done)} of {len(tasks)} fleets, {time.monotonic() - began:.0f} s"
                    print(text, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            _leave_interrupts()
            print(f"interrupted after {len(done)} of {len(tasks)} fleets", file=sys.stderr, flush=True)
            pool.terminate()
    return done


def _read(kept: Path | None) -> list[Done]:
    if kept is None or not kept.exists():
        return []
    # A line that was cut off by the interruption has no end.
    lines = kept.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Done) for line in lines]


def _append(kept: Path | None, done: Done) -> None:
    if kept is not None:
        with kept.open("ab") as file:
            file.write(msgspec.json.encode(done) + b"\n")


def _leave_interrupts() -> None:
    """To the process that hands out the work; and, once it has stopped, to nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(task: Task) -> Done:
    return Done(task, run(task.seed, HARSH if task.harsh else Model(), beyond=task.beyond))
