"""The agent on one state folder, without its network and its runtimes: its own start, book, store, deployments, spool and asks.

The rig holds what outlives it (see `journal`). A round is one turn of the agent's loop; a second of its time goes by in each.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from covey_agent import __version__
from covey_agent.asks import Answer, Ask, AskFolder
from covey_agent.core.state import AgentState, ModelRecord, status_of
from covey_agent.daemon import take_up
from covey_agent.errors import AgentError
from covey_agent.gateway.control_api import Load, Loaded, Request
from covey_agent.installing import Installer
from covey_agent.manual import Manual
from covey_contract.enrolment import RenewRequest
from covey_contract.messages import Hello, Report, Telemetry
from covey_contract.reasons import Reason
from covey_contract.topics import Up
from covey_contract.wire import decode, encode
from covey_hil.faults import renewing
from covey_hil.faults.journal import Added, Adding, Journal, Sent, Served, Trouble, Written
from covey_hil.testing.agent_world import DEVICE, MACHINE, Fuse, PlayedGateway, World

SPOOL_LIMIT = 16
MODEL = "m"


class Gateway(PlayedGateway):
    """Tells the rig of whatever it did, before control hears of it."""

    def __init__(self, journal: Journal, served: Served) -> None:
        super().__init__(Fuse())
        self._journal = journal
        self.models, self.reverted = dict(served.models), dict(served.reverted)
        self.crashing: Collection[str] = ()  # builds that crash in probation

    def load(self, request: Load) -> Loaded:
        loaded = super().load(request)
        self.tell()
        return loaded

    def do(self, request: Request) -> None:
        super().do(request)
        self.tell()

    def live(self, now_ms: int) -> None:
        for model, slots in list(self.models.items()):
            if slots.probation is not None and slots.active in self.crashing:
                self.crash_active(model, now_ms)
                self.tell()

    def tell(self) -> None:
        self._journal.tell(Served(self.models, self.reverted))


class Device(World):
    """`boot` raises `AgentError` where the agent would end with a line that says why."""

    def __init__(self, folder: Path, journal: Journal, *, served: Served, now: float, boot: bool = True) -> None:
        self.journal = journal
        self._boots = boot
        self.refused = False  # a person at the device was told no
        self.again = False  # this is the start after the fault
        self.played = Gateway(journal, served)
        super().__init__(folder, gateway=self.played, now=now)
        self._boots = True

    def boot(self) -> None:
        if not self._boots:
            return
        taken = take_up(self.settings, self.clock, SPOOL_LIMIT)
        self.outbox = taken.outbox
        change = taken.book.change

        def change_and_tell(edit: Callable[[AgentState], AgentState]) -> AgentState:
            state = change(edit)
            deployment = state.record(MODEL).deployment
            told = Written(state.generation, state.counter, deployment.state if deployment is not None else None)
            self.journal.tell(told)
            return state

        taken.book.change = change_and_tell  # type: ignore[method-assign]  # the rig shall know what may not be lost any more
        self.wire(taken.book, taken.store)
        self.store = taken.store
        manual = Manual(taken.book, self.serving, self.clock, self.deployments.tell)
        installer = Installer(DEVICE, self.deployments, manual)

        def obey(ask: Ask) -> Answer:
            answer = installer.obey(ask)
            self.refused = self.refused or not answer.done
            return answer

        self.asks = AskFolder(self.folder, obey)
        self.take_up_identity()
        if taken.last_exit not in (Reason.STARTED, Reason.STOPPED):
            self.deployments.tell_again(self.outbox.newest_reports())
        self.hello()

    def take_up_identity(self) -> None:
        """Where the device has one. Raises `AgentError`, as reading it does at the agent's start."""
        self.keeper: renewing.Keeper | None = None
        try:
            there = (self.folder / renewing.FOLDER).exists()
        except OSError as error:
            raise AgentError(f"{renewing.FOLDER} cannot be read: {error}") from error
        if there:
            self.keeper = renewing.Keeper(self.settings, self.clock, self._asked)
            self.keeper.renewal.start(self.now)

    def _asked(self, request: RenewRequest) -> None:
        self.journal.tell(Sent(Up.RENEWAL, 0, "", msgspec.Raw(encode(request))))

    @property
    def record(self) -> ModelRecord:
        return self.book.state.record(MODEL)

    def report(self, report: Report) -> None:
        self.spool(report)

    def spool(self, message: Report | Telemetry) -> None:
        key = key_of(message)
        self.journal.tell(Adding(key, Up.REPORT if isinstance(message, Report) else Up.TELEMETRY))
        self.outbox.add(message)
        if not self.outbox.held:
            self.journal.tell(Added(key))

    def hello(self) -> None:
        """Connected: the server hears what is here, and says what should be."""
        last_seq = self.outbox.last_seq()
        state = self.book.state
        hello = Hello(
            boot_id="boot",
            agent_version=__version__,
            facts_digest=MACHINE.facts.digest(),
            time_ms=self.clock(),
            last_counter=state.counter,
            last_seq=last_seq,
            models=tuple(status_of(model, record) for model, record in sorted(state.models.items())),
        )
        self.journal.tell(Sent(Up.HELLO, 0, "", msgspec.Raw(encode(hello))))
        self.outbox.connected()
        if self.newest is not None and state.counter < self.counter:
            self.deployments.order(self.newest)

    def round(self) -> None:
        """Like the agent's loop it goes on whatever happens; unlike it, what should not happen is counted."""
        try:
            super().round()
            self.played.live(self.clock())
            self.asks.look(self.now)
            if self.keeper is not None:
                self.keeper.round(self.now)
            self.send()
        except Exception as error:  # noqa: BLE001  # the seam that keeps the loop alive; told, and judged by the rig
            self.journal.tell(Trouble(f"the loop caught {type(error).__name__}: {error}"))

    def send(self) -> None:
        """As `Control.send_spooled`, to a server that acknowledges at once."""
        self.outbox.flush()
        records = self.outbox.due(self.now)
        for record in records:
            message: Report | Telemetry
            message = decode(Report, record.body) if record.kind is Up.REPORT else decode(Telemetry, record.body)
            self.journal.tell(Sent(record.kind, record.seq, key_of(message), msgspec.Raw(record.body)))
        if records:
            self.outbox.acknowledged([record.seq for record in records])

    def run(self, until: Callable[[], bool], rounds: int = 60) -> None:
        """Raises `AssertionError` if it does not come to that."""
        for _ in range(rounds):
            if until():
                return
            self.round()
        if not until():
            raise AssertionError(f"not there after {rounds} rounds: {self.record}; {self.gateway.models}")

    @property
    def drained(self) -> bool:
        """Whether the server has all that was spooled."""
        try:
            return self.outbox.waiting() == 0
        except sqlite3.Error:
            return False


def key_of(message: Report | Telemetry) -> str:
    return hashlib.sha256(encode(msgspec.structs.replace(message, seq=0))).hexdigest()[:16]
