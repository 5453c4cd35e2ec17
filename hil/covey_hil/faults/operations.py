"""The durable operations of the agent, each as what is there before, what is done, and what must be true in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from covey_agent import durable
from covey_agent.asks import FOLDER, GoBack
from covey_contract.lifecycle import State
from covey_contract.messages import Action, Telemetry
from covey_contract.reasons import Reason
from covey_hil.faults import renewing
from covey_hil.faults.device import MODEL, SPOOL_LIMIT, Device
from covey_hil.testing.random_builds import RandomBuild

ONE = RandomBuild((30_000, 100), 1, "1")
TWO = RandomBuild((20_000,), 2, "2")
THREE = RandomBuild((9_000, 5_000), 3, "3")
LIKE_ONE = RandomBuild.of([ONE.contents[1], TWO.contents[1][:6_000]], "1.1")
NEXT = RandomBuild((7_000,), 9, "9")

# The counters of orders: those that were followed before, the operation's, and the one that must be followed after it.
FIRST, DURING, AFTER = 0, 100, 200


@dataclass(frozen=True)
class Operation:
    """`before` brings the device there; `want` is what the server or a person wants from now on, said again after each start; `act` is how it
    begins. `active` are the builds that may be the active one at any moment, `served` those that may answer; after it
    the device has `end` active, or nothing. `boots`: the start of the agent is part of it.
    `holds` and `ends` give what does not hold, in words, of this operation alone: at each start, and when it is done."""

    name: str
    what: str
    before: Callable[[Device], None]
    want: Callable[[Device], None]
    done: Callable[[Device], bool]
    active: frozenset[str | None]
    end: RandomBuild | None
    state: State = State.ACTIVE
    reason: Reason = Reason.NONE
    served: frozenset[str | None] = frozenset()
    act: Callable[[Device], None] = lambda device: device.hello()
    crashing: frozenset[str] = field(default_factory=frozenset)
    boots: bool = False
    holds: Callable[[Device], Iterable[str]] = lambda _device: ()
    ends: Callable[[Device], Iterable[str]] = lambda _device: ()

    @property
    def may_serve(self) -> frozenset[str | None]:
        return self.active | self.served


def install(device: Device, *builds: RandomBuild) -> None:
    for build in builds:
        device.order(build)
        device.hello()
        device.run(lambda build=build: device.is_settled(build))  # type: ignore[misc]
    device.run(lambda: device.drained)


def order(build: RandomBuild, action: Action = Action.RUN) -> Callable[[Device], None]:
    def want(device: Device) -> None:
        device.counter = DURING
        device.order(build, action)

    return want


def settled(build: RandomBuild) -> Callable[[Device], bool]:
    return lambda device: device.is_settled(build) and device.drained


def _two(device: Device) -> None:
    install(device, ONE, TWO)


def _ask_to_go_back(device: Device) -> None:
    install(device, ONE, TWO)
    durable.write(device.folder / FOLDER / "ask.json", msgspec.json.encode(GoBack(MODEL)))


def _ask_again(device: Device) -> None:
    """A person who was told no asks again, after the next start."""
    if device.again and device.record.active != ONE.digest:
        durable.write(device.folder / FOLDER / "ask.json", msgspec.json.encode(GoBack(MODEL)))


def _half_way(device: Device) -> None:
    """A swap that was cut short while its build warmed up."""
    install(device, ONE)
    order(TWO)(device)
    device.hello()
    go_on = device.jobs.run_one
    device.jobs.run_one = lambda: None if device.is_in(State.WARMING) else go_on()  # type: ignore[method-assign]
    device.run(lambda: device.is_in(State.WARMING))


def _on_trial(device: Device) -> None:
    """A swap that was cut short while its build was on probation."""
    install(device, ONE)
    order(TWO)(device)
    device.hello()
    device.run(lambda: device.is_in(State.PROBATION))


def _half_fetched(device: Device) -> None:
    install(device, ONE)
    order(TWO)(device)
    device.hello()
    device.run(lambda: device.is_in(State.FETCHING))


def _power_lost(device: Device) -> None:
    install(device, ONE, TWO)
    device.played.lose_everything()
    device.played.tell()


def _serves_two(device: Device) -> bool:
    """And has noted that it started well."""
    return device.serving_build == TWO.digest and device.drained and not device.record.broken


def _damaged(device: Device) -> None:
    """The first copy of the state is rubbish, and kills have left their halves everywhere."""
    install(device, ONE, TWO)
    (device.folder / "state.json").write_bytes(b"rubbish")
    for name in (".state.json.7.tmp", "blobs/.x.tmp", "builds/.y.tmp", "orders/.1.json.7.tmp", "asks/.a.answer.7.tmp"):
        (device.folder / name).write_bytes(b"half")


def _enrolled(device: Device) -> None:
    install(device, ONE)
    renewing.enrol(device.folder, device.clock())


def _enrolled_out_of_reach(device: Device) -> None:
    install(device, ONE)
    renewing.enrol(device.folder, device.clock(), renewing.OUT_OF_REACH)


def _want_a_certificate(device: Device) -> None:
    if device.keeper is not None and not renewing.is_renewed(device.folder):
        device.keeper.renewal.ask_now()


def _half_renewed(device: Device) -> None:
    """Killed when the new certificate was stored, and had not connected."""
    _enrolled(device)
    device.take_up_identity()
    _want_a_certificate(device)
    assert device.keeper is not None  # noqa: S101  # for the type checker
    device.keeper.renewal.tick(device.now)
    device.keeper.renewal.tick(device.now)


def _renewal(name: str, what: str, before: Callable[[Device], None], *, boots: bool = False) -> Operation:
    """At each moment a certificate and a key that fit each other are in use, and in the end the new pair alone is there."""
    return Operation(
        name,
        what,
        before=before,
        want=_want_a_certificate,
        done=lambda device: renewing.is_renewed(device.folder) and device.drained,
        active=frozenset({ONE.digest}),
        end=ONE,
        boots=boots,
        holds=lambda device: renewing.whole(device.folder),
        ends=lambda device: (*renewing.whole(device.folder), *renewing.tidy(device.folder)),
    )


def _want_another(device: Device) -> None:
    device.counter = DURING + 1
    device.order(THREE)


def _fill_spool(device: Device) -> None:
    """More than the spool takes, while nobody listens."""
    for number in range(SPOOL_LIMIT + 8):
        start = device.clock() + number
        device.spool(Telemetry(seq=0, boot_id="boot", start_ms=start, end_ms=start + 1))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "install",
        "the first build of a device",
        before=lambda _device: None,
        want=order(ONE),
        done=settled(ONE),
        active=frozenset({None, ONE.digest}),
        end=ONE,
    ),
    Operation(
        "swap",
        "another build beside the one that serves",
        before=lambda device: install(device, ONE),
        want=order(TWO),
        done=settled(TWO),
        active=frozenset({ONE.digest, TWO.digest}),
        end=TWO,
    ),
    Operation(
        "swap, shared files",
        "a build that shares a file with the one that serves",
        before=lambda device: install(device, ONE),
        want=order(LIKE_ONE),
        done=settled(LIKE_ONE),
        active=frozenset({ONE.digest, LIKE_ONE.digest}),
        end=LIKE_ONE,
    ),
    Operation(
        "collect",
        "a third build, for which the first one is removed",
        before=_two,
        want=order(THREE),
        done=settled(THREE),
        active=frozenset({TWO.digest, THREE.digest}),
        end=THREE,
    ),
    Operation(
        "back",
        "an order to go back to the build before",
        before=_two,
        want=order(ONE),
        done=settled(ONE),
        active=frozenset({ONE.digest, TWO.digest}),
        end=ONE,
    ),
    Operation(
        "reverted",
        "a build that crashes in probation",
        before=lambda device: install(device, ONE),
        want=order(TWO),
        done=lambda device: device.is_in(State.ROLLED_BACK) and device.drained,
        active=frozenset({ONE.digest}),
        served=frozenset({TWO.digest}),
        end=ONE,
        state=State.ROLLED_BACK,
        reason=Reason.RUNNER_CRASHED,
        crashing=frozenset({TWO.digest}),
    ),
    Operation(
        "by hand",
        "a person at the device goes back",
        before=_ask_to_go_back,
        want=_ask_again,
        done=lambda device: (
            device.drained and (device.refused or device.serving_build == device.record.active == ONE.digest)
        ),
        active=frozenset({ONE.digest, TWO.digest}),
        end=ONE,
        state=State.ROLLED_BACK,
        reason=Reason.OPERATOR,
    ),
    Operation(
        "superseded",
        "a newer order while a build is fetched",
        before=_half_fetched,
        want=_want_another,
        done=settled(THREE),
        active=frozenset({ONE.digest, THREE.digest}),
        end=THREE,
    ),
    Operation(
        "remove",
        "an order to run nothing",
        before=_two,
        want=order(TWO, Action.REMOVE),
        done=lambda device: device.is_in(State.REMOVED) and device.serving_build is None and device.drained,
        active=frozenset({TWO.digest, None}),
        end=None,
        state=State.REMOVED,
    ),
    _renewal("renew", "a new certificate for the device", _enrolled),
    _renewal(
        "renew, by the broker",
        "a new certificate for a device that does not reach the server's HTTPS port",
        _enrolled_out_of_reach,
    ),
    _renewal(
        "renew, on trial",
        "the start of an agent that was killed before its new certificate had connected",
        _half_renewed,
        boots=True,
    ),
    Operation(
        "spool",
        "telemetry until the spool is full, then a connection",
        before=lambda device: install(device, ONE),
        want=lambda _device: None,
        done=lambda device: device.drained,
        active=frozenset({ONE.digest}),
        end=ONE,
        act=_fill_spool,
    ),
    Operation(
        "resume",
        "the start of an agent that was killed while a build warmed up",
        before=_half_way,
        want=order(TWO),
        done=settled(TWO),
        active=frozenset({ONE.digest, TWO.digest}),
        end=TWO,
        boots=True,
    ),
    Operation(
        "resume on trial",
        "the start of an agent that was killed in a build's probation",
        before=_on_trial,
        want=order(TWO),
        done=settled(TWO),
        active=frozenset({ONE.digest, TWO.digest}),
        end=TWO,
        boots=True,
    ),
    Operation(
        "start",
        "the start after a power cut, with a gateway that has nothing",
        before=_power_lost,
        want=lambda _device: None,
        done=_serves_two,
        active=frozenset({TWO.digest}),
        end=TWO,
        boots=True,
    ),
    Operation(
        "mend",
        "the start on a state folder with a damaged copy and halves of files",
        before=_damaged,
        want=lambda _device: None,
        done=_serves_two,
        active=frozenset({TWO.digest}),
        end=TWO,
        boots=True,
    ),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
