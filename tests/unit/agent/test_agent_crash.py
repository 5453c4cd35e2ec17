"""Killed at every write and at every call to the gateway, one after the other: the agent goes on and ends where it should.

The whole of control but the network runs here, over real files. The gateway is played by its own pure slots. A kill is an
exception that nothing catches; what comes after it starts from the disk alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent import durable
from covey_agent.book import Book, read_state
from covey_agent.core.acceptance import Machine
from covey_agent.deployments import Deployments
from covey_agent.errors import GatewayError, StepError
from covey_agent.fetch import FetchLimits, storage_step_error
from covey_agent.gateway.control_api import (
    GatewayStatus,
    Load,
    Loaded,
    ModelSlots,
    Request,
    Revert,
    Reverted,
    RunnerStatus,
    Settle,
    Switch,
    Unload,
)
from covey_agent.gateway.slots import Slots
from covey_agent.jobs import Finished, Key, Trouble
from covey_agent.serving import Serving
from covey_agent.settings import Settings
from covey_agent.store import CorruptError, Store
from covey_contract.envelope import Envelope
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.lifecycle import State
from covey_contract.manifest import MANIFEST_TYPE
from covey_contract.messages import ASSIGNMENT_TYPE, Action, Assignment, BlockRequest, Order, Probation, Report
from covey_contract.reasons import Reason
from covey_contract.signing import Trust, public_key, seal, seal_bytes
from covey_contract.wire import encode
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]
DIRECTOR, RELEASE = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUST = Trust(release=(public_key(RELEASE),), director=(public_key(DIRECTOR),))
MACHINE = Machine(
    Facts(architecture="x86_64", runtimes=(RuntimeFact(name="onnxruntime", version="1.20"),)), {"onnxruntime": "1.20"}
)


class Killed(BaseException):
    """SIGKILL."""


class Fuse:
    """Burns down by one at every point where the agent may be killed; at 0 it kills. None: never."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            self.left = None
            raise Killed
        self.left -= 1


class PlayedGateway:
    """Outlives control. `bad` builds do not load; `verified` looks into every folder that is to be loaded."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.models: dict[str, Slots] = {}
        self.reverted: dict[str, Reverted] = {}
        self.bad: dict[str, Reason] = {}
        self.loads: list[str] = []
        self.gone = False

    def lose_everything(self) -> None:
        self.models.clear()
        self.reverted.clear()

    def load(self, request: Load) -> Loaded:
        self._alive()
        self.loads.append(request.build)
        if request.build in self.bad:
            raise StepError(self.bad[request.build], "it does not load")
        assert (Path(request.folder) / "manifest.json").exists()
        self.models[request.model] = self.models.get(request.model, Slots()).with_candidate(request.build)
        self.fuse.step()
        return Loaded(load_ms=1, first_ms=1, rss_mb=1)

    def do(self, request: Request) -> None:
        self._alive()
        assert isinstance(request, Switch | Settle | Revert | Unload)
        slots = self.models.get(request.model, Slots())
        if isinstance(request, Switch):
            self.reverted.pop(request.model, None)
            slots = slots.switched(request.build, request.probation)
        elif isinstance(request, Settle):
            slots = slots.settled()
        elif isinstance(request, Revert):
            slots = slots.reverted()
        else:
            slots = slots.without(request.build)
        self.models[request.model] = slots
        self.fuse.step()

    def crash_active(self, model: str, now_ms: int) -> None:
        slots = self.models[model]
        assert slots.active is not None
        self.reverted[model] = Reverted(
            build=slots.active, to=slots.previous, reason=Reason.RUNNER_CRASHED, detail="died", time_ms=now_ms
        )
        self.models[model] = slots.reverted()

    def status(self) -> GatewayStatus:
        self._alive()
        return GatewayStatus(
            pid=1,
            started_ms=0,
            http_port=1,
            models=tuple(
                ModelSlots(
                    model=name,
                    active=slots.active,
                    previous=slots.previous,
                    candidate=slots.candidate,
                    runners=tuple(RunnerStatus(build=b, pid=1, state="ready", rss_mb=1) for b in sorted(slots.builds)),
                    in_probation=slots.probation is not None,
                    reverted=self.reverted.get(name),
                )
                for name, slots in self.models.items()
            ),
        )

    def _alive(self) -> None:
        self.fuse.step()
        if self.gone:
            raise GatewayError("nobody answers")


class InlineJobs:
    """Jobs that are done when the test says so, in its own thread."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Key, Callable[[], None]]] = deque()
        self.keys: set[Key] = set()

    def submit(self, key: Key, work: Callable[[], None]) -> bool:
        if key in self.keys:
            return False
        self.keys.add(key)
        self.queue.append((key, work))
        return True

    def busy(self, model: str) -> bool:
        return any(key.model == model for key in self.keys)

    def settled(self, finished: Finished) -> None:
        self.keys.discard(finished.key)

    def run_one(self) -> Finished | None:
        if not self.queue:
            return None
        key, work = self.queue.popleft()
        trouble: Trouble | None = None
        try:
            work()
        except (StepError, CorruptError, GatewayError) as error:
            trouble = error
        except OSError as error:
            trouble = storage_step_error(error)
        return Finished(key, trouble)


class World:
    """What outlives a kill: the disk, the gateway, the server and time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fuse = Fuse()
        self.gateway = PlayedGateway(self.fuse)
        self.builds: dict[str, RandomBuild] = {}
        self.newest: bytes | None = None
        self.order_id = ""
        self.counter = 0
        self.now = 1000.0
        self.reports: list[Report] = []
        self.free = 10**9
        for name in ("fetch", "orders"):
            (folder / name).mkdir()
        self.boot()

    def boot(self) -> None:
        """Start from the disk, as after a kill."""
        settings = Settings(
            state=self.folder, margin=0, retry_first_s=5.0, fetch=FetchLimits(silence_s=0.5, sync_blocks=4)
        )
        self.book = Book(self.folder)
        self.book.load()
        store = Store(self.folder)
        store.prepare()
        self.jobs = InlineJobs()
        gateway: Any = self.gateway
        jobs: Any = self.jobs
        self.serving = Serving(settings, self.book, store, gateway, jobs, self.clock)
        self.asked: deque[BlockRequest] = deque()
        self.deployments = Deployments(
            "d1",
            TRUST,
            settings,
            book=self.book,
            store=store,
            serving=self.serving,
            jobs=jobs,
            machine=lambda: MACHINE,
            free=lambda: self.free,
            report=self.reports.append,
            request=self.asked.append,
            clock=self.clock,
        )

    def clock(self) -> int:
        return int(self.now * 1000)

    def sealed(self, build: RandomBuild) -> Envelope:
        return seal_bytes(build.manifest_bytes, MANIFEST_TYPE, [RELEASE])

    def order(self, build: RandomBuild, action: Action = Action.RUN) -> Assignment:
        """What the server wants from now on; it is told again after every boot, as on a hello."""
        self.builds[build.digest] = build
        self.counter += 1
        assignment = Assignment(
            id=f"a{self.counter}",
            device="d1",
            counter=self.counter,
            issued_ms=self.clock(),
            expires_ms=self.clock() + 10**9,
            model="m",
            version=build.manifest.version,
            build=build.digest,
            action=action,
            probation=Probation(seconds=3),
        )
        self.order_id = assignment.id
        self.newest = encode(
            Order(assignment=seal(assignment, ASSIGNMENT_TYPE, [DIRECTOR]), manifest=self.sealed(build))
        )
        return assignment

    def round(self) -> None:
        """One look at everything; a second goes by."""
        self.now += 1.0
        try:
            self.serving.seen(self.gateway.status())
        except GatewayError:
            self.serving.seen(None)
        self.deployments.tick(self.now, connected=True)
        while self.asked:
            request = self.asked.popleft()
            for block in self.builds[request.build].answers(request):
                self.deployments.block(block)
        while (finished := self.jobs.run_one()) is not None:
            self.deployments.finished(finished)

    def run(self, until: Callable[[], bool], rounds: int = 60) -> None:
        if self.newest is not None:
            self.deployments.order(self.newest)
        for _ in range(rounds):
            if until():
                return
            self.round()
        raise AssertionError(f"not there after {rounds} rounds: {self.record}")

    @property
    def record(self) -> Any:
        return read_state(self.folder).record("m")

    @property
    def serving_build(self) -> str | None:
        return self.gateway.models.get("m", Slots()).active

    def is_in(self, state: State) -> bool:
        deployment = self.record.deployment
        return deployment is not None and deployment.order.id == self.order_id and deployment.state is state

    def is_settled(self, build: RandomBuild) -> bool:
        slots = self.gateway.models.get("m", Slots())
        return self.is_in(State.ACTIVE) and slots == Slots(active=build.digest)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, other than a power cut, leaves what was written; without flushing it is tried a hundred times a second."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _file: None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    real = durable.write

    def write(path: Path, data: bytes, mode: int = 0o644) -> None:
        made.fuse.step()
        real(path, data, mode)
        made.fuse.step()

    monkeypatch.setattr(durable, "write", write)
    return made


def check(world: World, counter: int, good: set[str | None]) -> int:
    """What must hold at every moment. Returns the counter, which only grows."""
    state = read_state(world.folder)
    assert state.counter >= counter
    assert state.record("m").active in good
    assert world.serving_build in good
    return state.counter


@pytest.mark.parametrize("gateway_too", [False, True], ids=["control", "control and gateway"])
@pytest.mark.parametrize("scenario", ["swap", "first", "back", "remove"])
def test_killed_at_every_step(
    tmp_path_factory: pytest.TempPathFactory,
    random_build: Make,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    gateway_too: bool,
) -> None:
    one, two = random_build((30_000, 100), 1, "1"), random_build((40_000,), 2, "2")
    real = durable.write
    kills = 0
    for fuse in range(10_000):
        world = World(tmp_path_factory.mktemp("world"))

        def write(path: Path, data: bytes, mode: int = 0o644, world: World = world) -> None:
            world.fuse.step()
            real(path, data, mode)
            world.fuse.step()

        monkeypatch.setattr(durable, "write", write)
        target = two
        if scenario != "first":
            world.order(one)
            world.run(lambda world=world: world.is_settled(one))  # type: ignore[misc]
        if scenario in ("back", "remove"):
            world.order(two)
            world.run(lambda world=world: world.is_settled(two))  # type: ignore[misc]
            target = one
        counter = world.book.state.counter
        good: set[str | None] = {None} if scenario == "first" else {one.digest}
        good |= {two.digest} if scenario in ("back", "remove", "swap", "first") else set()
        good |= {None} if gateway_too or scenario == "remove" else set()

        world.order(target, Action.REMOVE if scenario == "remove" else Action.RUN)

        def there(world: World = world, target: RandomBuild = target) -> bool:
            if scenario == "remove":
                return world.is_in(State.REMOVED) and world.serving_build is None
            return world.is_settled(target)

        world.fuse.left = fuse
        try:
            world.run(there)
        except Killed:
            kills += 1
            counter = check(world, counter, good | {None} if gateway_too else good)
            if gateway_too:
                world.gateway.lose_everything()
            world.boot()
            world.run(there)
            check(world, counter, good | {None} if scenario == "remove" else good)
        else:
            world.fuse.left = None
            break
        assert {path.name for path in (world.folder / "builds").iterdir()} <= {one.digest, two.digest}
    assert kills > (4 if scenario == "remove" else 20)


def test_a_gateway_that_dies_in_probation_gets_the_old_build_first(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    world.gateway.lose_everything()
    world.gateway.loads.clear()
    world.run(lambda: world.serving_build is not None)
    assert world.gateway.loads[0] == one.digest
    world.run(lambda: world.is_settled(two))


def test_a_build_in_whose_probation_the_gateway_dies_thrice_is_taken_back(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    for _ in range(3):
        world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
        world.gateway.lose_everything()
    world.run(lambda: world.is_in(State.ROLLED_BACK) and world.serving_build == one.digest)
    assert world.record.deployment.reason is Reason.PROBATION_INTERRUPTED
    # Not started again, until a newer order says so.
    world.gateway.loads.clear()
    for _ in range(20):
        world.round()
    assert two.digest not in world.gateway.loads
    world.order(two)
    world.run(lambda: world.is_settled(two))


def test_a_build_that_does_not_start_is_tried_three_times(world: World, random_build: Make) -> None:
    build = random_build((100,))
    world.gateway.bad[build.digest] = Reason.LOAD_TIMEOUT
    world.order(build)
    world.run(lambda: world.is_in(State.FAILED))
    assert world.gateway.loads == [build.digest] * 3
    for _ in range(30):
        world.round()
    assert len(world.gateway.loads) == 3


def test_a_build_that_cannot_load_is_tried_once(world: World, random_build: Make) -> None:
    build = random_build((100,))
    world.gateway.bad[build.digest] = Reason.GOLDEN_MISMATCH
    world.order(build)
    world.run(lambda: world.is_in(State.FAILED))
    assert world.gateway.loads == [build.digest]
    assert world.record.deployment.reason is Reason.GOLDEN_MISMATCH


def test_an_active_build_that_starts_no_more_gives_way_to_the_one_before(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    world.gateway.bad[two.digest] = Reason.LOAD_FAILED
    world.gateway.lose_everything()
    world.boot()
    world.run(lambda: world.serving_build == one.digest)
    assert world.is_in(State.ROLLED_BACK)
    assert world.record.deployment.reason is Reason.QUARANTINED
    assert world.gateway.loads.count(two.digest) == 1 + 3


def test_an_active_build_that_rotted_is_not_loaded(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    blob = world.folder / "blobs" / two.manifest.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b"x" * 100)
    world.gateway.lose_everything()
    world.gateway.loads.clear()
    world.run(lambda: world.serving_build == one.digest)
    assert two.digest not in world.gateway.loads
    assert world.record.deployment.reason is Reason.DIGEST_MISMATCH


def test_the_gateway_goes_back_and_control_learns_of_it_later(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    # Control is dead while it happens.
    world.now += 1
    world.gateway.crash_active("m", world.clock())
    world.boot()
    world.run(lambda: world.is_in(State.ROLLED_BACK))
    last = world.reports[-1]
    assert (last.state, last.reason, last.previous) == (State.ROLLED_BACK, Reason.RUNNER_CRASHED, one.digest)


def test_no_space_is_refused_and_tried_again_when_there_is_some(world: World, random_build: Make) -> None:
    build = random_build((50_000,))
    world.free = 1000
    world.order(build)
    world.run(lambda: world.is_in(State.REFUSED))
    assert world.record.deployment.reason is Reason.NO_SPACE
    world.free = 10**9
    world.run(lambda: world.is_settled(build), rounds=200)


def test_a_disk_that_takes_no_state_delays_and_loses_nothing(
    world: World, random_build: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = random_build((100,), 1, "1"), random_build((5000,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    working = durable.write

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    world.order(two)
    with pytest.raises(AssertionError, match="not there"):
        world.run(lambda: world.is_settled(two), rounds=10)
    assert world.serving_build == one.digest
    monkeypatch.setattr(durable, "write", working)
    world.newest = None  # it is not even told again
    world.run(lambda: world.is_settled(two))


def test_refused_orders_change_nothing_and_are_told_once(world: World, random_build: Make) -> None:
    one = random_build((100,), 1, "1")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    before = read_state(world.folder)
    stranger = Ed25519PrivateKey.generate()
    forged = Assignment(
        id="forged",
        device="d1",
        counter=999,
        issued_ms=0,
        expires_ms=1 << 50,
        model="m",
        version="1",
        build=one.digest,
    )
    for key, order in ((stranger, forged), (DIRECTOR, forged.__class__(**{**_fields(forged), "device": "d2"}))):
        payload = encode(Order(assignment=seal(order, ASSIGNMENT_TYPE, [key]), manifest=world.sealed(one)))
        world.reports.clear()
        for _ in range(3):
            world.deployments.order(payload)
        (report,) = world.reports
        assert report.state is State.REFUSED
        assert report.reason in (Reason.BAD_SIGNATURE, Reason.WRONG_DEVICE)
    # The newest order told again is no news either.
    world.reports.clear()
    assert world.newest is not None
    world.deployments.order(world.newest)
    assert not world.reports
    assert read_state(world.folder) == before


def _fields(order: Assignment) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__struct_fields__}
