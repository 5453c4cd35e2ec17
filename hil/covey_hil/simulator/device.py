"""One simulated device: it follows orders, tells of each step, and says again what the server has not acknowledged.

Simulated are the steps themselves (a pause instead of fetching and loading) and the signatures, which it does not check.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from covey_contract.errors import ContractError
from covey_contract.facts import Facts
from covey_contract.lifecycle import State
from covey_contract.messages import Ack, Action, Assignment, Hello, ModelStatus, Order, Report, Status
from covey_contract.topics import Down, Up, down_filter, parse_down, up
from covey_contract.wire import Message, decode, encode
from covey_hil.simulator.mqtt import MqttError, Session, Will

KEEPALIVE_S = 60
RESEND_S = 20.0
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# What an agent tells of a deployment, in this order.
STEPS = (State.FETCHING, State.VERIFYING, State.STAGED, State.WARMING, State.PROBATION, State.ACTIVE)


@dataclass(frozen=True)
class Heard:
    """An order as it arrived. `at_s` is by the machine's monotonic clock, which its processes share."""

    counter: int
    build: str
    rollback: bool
    at_s: float


@dataclass(frozen=True)
class Place:
    """Where devices are, and the time there."""

    host: str
    port: int
    clock_ms: Callable[[], int]
    monotonic: Callable[[], float]
    draw: random.Random
    step_s: float  # the mean pause before each step of a deployment


@dataclass
class SimulatedDevice:
    """`model` and `active`: what it serves when it is first switched on. `sent` counts the reports it has said at least once."""

    id: str
    facts: Facts
    model: str
    active: str | None
    place: Place
    previous: str | None = None
    candidate: str | None = None
    assignment: Assignment | None = None
    state: State | None = None
    counter: int = 0
    heard: list[Heard] = field(default_factory=list)
    sent: set[int] = field(default_factory=set)
    sessions: int = 0

    def __post_init__(self) -> None:
        self._boot_id = f"{self.id}-{self.place.clock_ms()}"
        # As agents number: never a number twice, not even after a new start.
        self._seq = self.place.clock_ms() << 10
        self._outbox: dict[int, tuple[bytes, float]] = {}  # by seq: the report, and when it was last said
        self._session: Session | None = None
        self._walking: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.closed

    @property
    def unacknowledged(self) -> int:
        return len(self._outbox)

    async def run(self, admit: asyncio.Semaphore) -> None:
        """Keep a session until cancelled. `admit` bounds how many devices of the fleet connect at once."""
        failures = 0
        while True:
            lost = asyncio.Event()
            session = Session(self.id, self._will(), KEEPALIVE_S, self._take, lost.set)
            try:
                async with admit:
                    await session.open(self.place.host, self.place.port, down_filter(self.id))
            except (MqttError, OSError, TimeoutError):
                failures += 1
            else:
                failures, self._session, self.sessions = 0, session, self.sessions + 1
                self._greet()
                try:
                    await lost.wait()
                except asyncio.CancelledError:
                    session.disconnect()
                    raise
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)] * self.place.draw.uniform(0.5, 1.0))

    def beat(self, now: float) -> None:
        """A heartbeat, and once more what was said long enough ago without an answer."""
        self._say(Up.STATUS, Status(boot_id=self._boot_id, online=True, time_ms=self.place.clock_ms()))
        self.say_again(now - RESEND_S)

    def say_again(self, said_before: float) -> None:
        for seq, (body, said) in list(self._outbox.items()):
            if said <= said_before and self._session is not None:
                self._session.publish(up(self.id, Up.REPORT), body)
                self._outbox[seq] = (body, self.place.monotonic())

    # --- what it says ---------------------------------------------------------------------------------------------

    def _will(self) -> Will:
        return Will(up(self.id, Up.STATUS), encode(Status(boot_id=self._boot_id, online=False)))

    def _greet(self) -> None:
        status = ModelStatus(
            model=self.model,
            active=self.active,
            previous=self.previous,
            candidate=self.candidate,
            assignment=None if self.assignment is None else self.assignment.id,
            counter=self.counter,
            state=self.state,
        )
        hello = Hello(
            boot_id=self._boot_id,
            agent_version="simulated",
            facts_digest=self.facts.digest(),
            time_ms=self.place.clock_ms(),
            last_counter=self.counter,
            last_seq=self._seq,
            models=(status,),
            simulated=True,
        )
        self._say(Up.HELLO, hello)
        self.say_again(self.place.monotonic())

    def _say(self, what: Up, message: Message) -> None:
        if self._session is not None:
            self._session.publish(up(self.id, what), encode(message))

    def _report(self, order: Assignment, state: State) -> None:
        self._seq += 1
        report = Report(
            seq=self._seq,
            time_ms=self.place.clock_ms(),
            assignment=order.id,
            counter=order.counter,
            model=order.model,
            version=order.version,
            build=order.build,
            state=state,
            previous=self.previous if state in {State.PROBATION, State.ACTIVE} else self.active,
        )
        body = encode(report)
        said = float("-inf")
        if self._session is not None and self._session.publish(up(self.id, Up.REPORT), body):
            said = self.place.monotonic()
        self.sent.add(self._seq)
        self._outbox[self._seq] = (body, said)

    # --- what it hears --------------------------------------------------------------------------------------------

    def _take(self, topic: str, payload: bytes) -> None:
        try:
            match parse_down(topic):
                case Down.ASSIGNMENT:
                    self._obey(decode(Order, payload))
                case Down.ACK:
                    for seq in decode(Ack, payload).seqs:
                        self._outbox.pop(seq, None)
                case _:
                    pass
        except ContractError as error:
            raise MqttError(str(error)) from error

    def _obey(self, order: Order) -> None:
        assignment = decode(Assignment, order.assignment.payload)
        if assignment.counter <= self.counter:
            return  # an agent refuses it as old; here it is a duplicate that QoS 1 allows
        self.heard.append(Heard(assignment.counter, assignment.build, assignment.rollback, self.place.monotonic()))
        self.counter, self.assignment = assignment.counter, assignment
        if self._walking is not None:
            self._walking.cancel()
        self._walking = asyncio.get_running_loop().create_task(self._walk(assignment))

    async def _walk(self, order: Assignment) -> None:
        if order.action is Action.REMOVE:
            self.previous = self.active = self.candidate = None
            self._step(order, State.REMOVED)
            return
        if order.build == self.active:
            self._step(order, State.ACTIVE)
            return
        self.candidate = order.build
        for state in STEPS:
            await asyncio.sleep(self.place.draw.uniform(0.0, 2 * self.place.step_s))
            if state is State.PROBATION:
                self.previous, self.active, self.candidate = self.active, order.build, None
            self._step(order, state)

    def _step(self, order: Assignment, state: State) -> None:
        self.state = state
        self._report(order, state)


def record_of(device: SimulatedDevice) -> dict[str, object]:
    """What a benchmark wants to know of it: {id, active, sessions, sent: [seq], unacknowledged, heard: [{counter, build, …}]}."""
    return {
        "id": device.id,
        "active": device.active,
        "sessions": device.sessions,
        "sent": sorted(device.sent),
        "unacknowledged": device.unacknowledged,
        "heard": msgspec.to_builtins(device.heard),
    }
