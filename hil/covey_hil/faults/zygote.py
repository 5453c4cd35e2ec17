"""A process that has imported the agent once, and forks a device for each job: a start costs milliseconds instead of half a second.

`python -m covey_hil.faults.zygote FD`: jobs come on standard input, one JSON object a line; what the devices tell goes to the
socket FD. One thread, so that a fork is whole.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from socket import socket

import msgspec

from covey_agent.errors import AgentError
from covey_contract.strenum import StrEnum
from covey_hil.faults import judge
from covey_hil.faults.device import Device
from covey_hil.faults.journal import Down, Ended, Journal, Ready, Served, Settled, Trouble, Written
from covey_hil.faults.operations import AFTER, BY_NAME, LIKE_ONE, NEXT, ONE, THREE, TWO, Operation


class Phase(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`served`: what the gateway holds; `now`: seconds; `least`: what the book may not fall behind of."""

    phase: Phase
    operation: str
    folder: str
    served: Served = Served({})
    now: float = 1000.0
    least: Written = Written(0, 0)
    rounds: int = 120
    strict: bool = True  # it must come to its end


def main() -> int:
    journal = Journal(socket(fileno=int(sys.argv[1])))
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = work(job, journal)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        journal.tell(Ended(status))
    return 0


def work(job: Job, journal: Journal) -> int:
    operation = BY_NAME[job.operation]
    try:
        if job.phase is Phase.BEFORE:
            before(job, operation, journal)
        elif job.phase is Phase.DURING:
            during(job, operation, journal)
        else:
            after(job, operation, journal)
    except AgentError as error:
        journal.tell(Down(str(error)))
    except AssertionError as error:
        if job.strict:
            journal.tell(Trouble(str(error)))
    except Exception:  # noqa: BLE001  # the seam: whatever ends the agent is told, and judged by the rig
        journal.tell(Trouble(traceback.format_exc()[-1500:]))
    return 0


def make(job: Job, operation: Operation, journal: Journal, *, boot: bool = True) -> Device:
    device = Device(Path(job.folder), journal, served=job.served, now=job.now, boot=boot)
    device.builds.update({build.digest: build for build in (ONE, TWO, THREE, LIKE_ONE, NEXT)})
    device.played.crashing = operation.crashing if job.phase is not Phase.BEFORE else ()
    return device


def before(job: Job, operation: Operation, journal: Journal) -> None:
    device = make(job, operation, journal)
    operation.before(device)
    journal.tell(Settled(device.now))


def during(job: Job, operation: Operation, journal: Journal) -> None:
    device = make(job, operation, journal, boot=not operation.boots)
    journal.tell(Ready(os.getpid()))
    journal.wait()
    if operation.boots:
        device.boot()
    operation.want(device)
    operation.act(device)
    device.run(lambda: operation.done(device), job.rounds)
    journal.tell(Settled(device.now))


def after(job: Job, operation: Operation, journal: Journal) -> None:
    device = make(job, operation, journal)
    for wrong in judge.at_start(device, operation, job.least):
        journal.tell(Trouble(f"after the start: {wrong}"))
    device.again = True
    operation.want(device)
    device.hello()
    device.round()  # at least once round, also where nothing is left to do
    device.run(lambda: operation.done(device), job.rounds)
    for wrong in judge.at_end(device, operation):
        journal.tell(Trouble(f"in the end: {wrong}"))
    journal.tell(Settled(device.now))
    device.counter = AFTER
    device.order(NEXT)
    device.hello()
    device.run(lambda: device.is_settled(NEXT) and device.drained, job.rounds)
    for wrong in judge.nothing_left(device):
        journal.tell(Trouble(f"after the next install: {wrong}"))


if __name__ == "__main__":
    raise SystemExit(main())
