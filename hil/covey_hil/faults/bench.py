"""One device under fault: its folder, the zygote that its processes are forked from, and what outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from covey_hil.faults.disk import LoopDisk
from covey_hil.faults.journal import (
    Added,
    Adding,
    Down,
    Ended,
    Entry,
    Journal,
    Ready,
    Sent,
    Served,
    Settled,
    Trouble,
    Written,
)
from covey_hil.faults.strace import Injection, Tracer
from covey_hil.faults.zygote import Job, Phase
from covey_hil.processes import ProcessError

_PATIENCE_S = 30.0


@dataclass
class Outlived:
    """What a device's end leaves standing, and what was told until then."""

    served: Served = Served({})
    now: float = 1000.0
    least: Written = Written(0, 0)
    entries: list[Entry] = field(default_factory=list)

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)
        if isinstance(entry, Served):
            self.served = entry
        elif isinstance(entry, Written):
            self.least = entry
        elif isinstance(entry, Settled):
            self.now = entry.now

    def copy(self) -> Outlived:
        return Outlived(self.served, self.now, self.least, list(self.entries))


@dataclass
class Ran:
    """How a device's process ended."""

    killed: bool = False
    settled: bool = False
    down: str = ""
    injected: int = 0


class Bench:
    """Use as a context. All is kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = LoopDisk(folder)
        self.state = folder / "state"
        self._before: dict[str, Outlived] = {}
        self._on_disk: set[str] = set()

    def __enter__(self) -> Bench:
        self._journal, theirs = Journal.pair()
        with (self.folder / "zygote.log").open("ab") as log:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "covey_hil.faults.zygote", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=[theirs.fileno()],
                # The same hashes, so that sets are walked in the same order each time.
                env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._zygote.stdin is not None  # noqa: S101  # it is a pipe
        self._zygote.stdin.close()
        self._zygote.wait(_PATIENCE_S)
        self._journal.close()
        self.disk.eject()

    # --- one process of the device ----------------------------------------------------------------------------------

    def run(
        self, job: Job, outlived: Outlived, *, injections: tuple[Injection, ...] = (), trace: bool = False
    ) -> tuple[Ran, Tracer | None]:
        assert self._zygote.stdin is not None  # noqa: S101  # it is a pipe
        job = msgspec.structs.replace(job, served=outlived.served, now=outlived.now, least=outlived.least)
        self._zygote.stdin.write(msgspec.json.encode(job) + b"\n")
        self._zygote.stdin.flush()
        ran, tracer = Ran(), None
        pid = 0
        while not isinstance(entry := self._hear(pid, outlived), Ended):
            if isinstance(entry, Ready):
                pid = entry.pid
                if trace or injections:
                    tracer = Tracer(pid, self.folder / "strace.log", injections)
                self._journal.go()
            elif isinstance(entry, Down):
                ran.down = entry.why
            else:
                outlived.note(entry)
                ran.settled = ran.settled or isinstance(entry, Settled)
        ran.killed = os.WIFSIGNALED(entry.status) and os.WTERMSIG(entry.status) == signal.SIGKILL
        if tracer is not None:
            tracer.wait()
            ran.injected = tracer.injected()
        return ran, tracer

    def _hear(self, pid: int, outlived: Outlived) -> Entry:
        try:
            return self._journal.hear(_PATIENCE_S)
        except TimeoutError:
            if not pid:
                raise
            outlived.note(Trouble(f"the device said nothing for {_PATIENCE_S:.0f} s and was ended"))
            os.kill(pid, signal.SIGKILL)
            return self._journal.hear(_PATIENCE_S)

    # --- its state folder -------------------------------------------------------------------------------------------

    def prepare(self, operation: str) -> Outlived:
        """The state folder as it is before the operation, and what stands beside it. Made once."""
        if operation not in self._before:
            outlived = Outlived()
            self._empty()
            ran, _ = self.run(Job(phase=Phase.BEFORE, operation=operation, folder=str(self.state)), outlived)
            if not ran.settled:
                raise ProcessError(f"{operation}: the device could not be prepared: {outlived.entries[-3:]}")
            outlived.entries = [entry for entry in outlived.entries if isinstance(entry, Adding | Added | Sent)]
            self._copy(self.state, self._template(operation))
            self._before[operation] = outlived
        else:
            self._remove(self.state)
            self._copy(self._template(operation), self.state)
        return self._before[operation].copy()

    def prepare_disk(self, operation: str) -> Outlived:
        """The same on a disk whose power can be cut: `state` lies there until `give_back_disk`."""
        outlived = self.prepare(operation)
        name = self._template(operation).name
        if operation not in self._on_disk:
            self.disk.keep(name, self.state)
            self._on_disk.add(operation)
        self.disk.insert(name)
        self.state = self.disk.point / "state"
        return outlived

    def give_back_disk(self) -> None:
        self.disk.eject()
        self.state = self.folder / "state"

    def _template(self, operation: str) -> Path:
        return self.folder / f"before-{operation.replace(' ', '-')}"

    def _empty(self) -> None:
        self._remove(self.state)
        self.state.mkdir(mode=0o700)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """With hard links as they are, which a build's files are to its blobs."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)

    @staticmethod
    def _remove(folder: Path) -> None:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
