"""Many fleets, each in a process of its own, drawn from seeds of their own.

A module apart from the command, since processes that are spawned import what they run by its name.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from dataclasses import dataclass

from benchmarks.verdicts.fleet import HARSH, Model
from benchmarks.verdicts.scenarios import Outcome, run

# Rules and their numbers were chosen on seeds from 77,000,000 on; these are for the table alone.
SEED = 500_000_000
HARSH_SEED = 600_000_000


@dataclass(frozen=True)
class Task:
    seed: int
    harsh: bool
    beyond: bool


@dataclass(frozen=True)
class Done:
    task: Task
    outcomes: list[Outcome]


def simulate(fleets: int, jobs: int) -> list[Done]:
    """Every fifth fleet has a harsher one beside it, and every second one runs what the study left out, too. Whoever interrupts it gets
    the table of what was done."""
    tasks = []
    for number in range(fleets):
        tasks.append(Task(SEED + number, harsh=False, beyond=number % 2 == 0))
        if number % 5 == 0:
            tasks.append(Task(HARSH_SEED + number, harsh=True, beyond=False))
    done: list[Done] = []
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks)), _leave_interrupts) as pool:
        try:
            for each in pool.imap_unordered(_run, tasks):
                done.append(each)
                if len(done) % 10 == 0 or len(done) == len(tasks):
                    text = f"{len(done)} of {len(tasks)} fleets, {time.monotonic() - began:.0f} s"
                    print(text, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(f"interrupted after {len(done)} of {len(tasks)} fleets", file=sys.stderr, flush=True)
            pool.terminate()
    return done


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(task: Task) -> Done:
    return Done(task, run(task.seed, HARSH if task.harsh else Model(), beyond=task.beyond))
