"""The whole of control but the network, over real files, beside a gateway that is played by its own pure slots.

A kill is an exception that nothing catches; what comes after it starts from the disk alone. The clock is the world's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent.book import Book, read_state
from covey_agent.bundle import Bundles
from covey_agent.core.acceptance import Machine
from covey_agent.core.conditions import Surroundings
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
from covey_agent.tuf.vouching import Vouching
from covey_contract.blocks import Block
from covey_contract.envelope import Envelope
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.lifecycle import State
from covey_contract.manifest import MANIFEST_TYPE
from covey_contract.messages import ASSIGNMENT_TYPE, Action, Assignment, BlockRequest, Order, Probation, Report
from covey_contract.reasons import Reason
from covey_contract.signing import Trust, public_key, seal, seal_bytes
from covey_contract.wire import encode
from covey_hil.testing.random_builds import RandomBuild

DIRECTOR, RELEASE = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
DEVICE = "d1"
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
        self.in_place: list[bool] = []
        self.gone = False

    def lose_everything(self) -> None:
        self.models.clear()
        self.reverted.clear()

    def load(self, request: Load) -> Loaded:
        self._alive()
        self.loads.append(request.build)
        self.in_place.append(request.in_place)
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
                    runners=tuple(
                        RunnerStatus(build=b, pid=1, state="serving" if b == slots.active else "ready", rss_mb=1)
                        for b in sorted(slots.builds)
                    ),
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

    def is_pending(self, key: Key) -> bool:
        return key in self.keys

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

    def __init__(
        self,
        folder: Path,
        vouching: Vouching | None = None,
        *,
        gateway: PlayedGateway | None = None,
        now: float = 1000.0,
    ) -> None:
        self.folder = folder
        self.vouching = vouching
        self.fuse = gateway.fuse if gateway is not None else Fuse()
        self.gateway = gateway if gateway is not None else PlayedGateway(self.fuse)
        self.builds: dict[str, RandomBuild] = {}
        self.newest: bytes | None = None
        self.order_id = ""
        self.counter = 0
        self.now = now
        self.clock_offset_s = 0.0  # of the device's clock of the day, which may be set
        self.reports: list[Report] = []
        self.free = 10**9
        self.memory_mb = 1e6
        self.mains_power = True
        self.idle_s = 1e6
        self.locked_until = 0.0
        self.connected = True
        self.boot()

    def boot(self) -> None:
        """Start from the disk, as after a kill."""
        for name in ("fetch", "orders"):
            (self.folder / name).mkdir(exist_ok=True)
        book = Book(self.folder)
        book.load()
        store = Store(self.folder)
        store.prepare()
        self.wire(book, store)

    @property
    def settings(self) -> Settings:
        return Settings(state=self.folder, margin=0, retry_first_s=5.0, fetch=FetchLimits(silence_s=0.5, sync_blocks=4))

    def wire(self, book: Book, store: Store) -> None:
        self.book = book
        settings = self.settings
        self.jobs = InlineJobs()
        gateway: Any = self.gateway
        jobs: Any = self.jobs
        self.serving = Serving(settings, self.book, store, gateway, jobs, self.clock)
        self.asked: deque[BlockRequest] = deque()
        self.read: deque[Block] = deque()  # from bundles, in threads of their own
        self.deployments = Deployments(
            DEVICE,
            TRUST,
            settings,
            book=self.book,
            store=store,
            serving=self.serving,
            jobs=jobs,
            machine=lambda: MACHINE,
            surroundings=self._look_around,
            free=lambda: self.free,
            memory=lambda: self.memory_mb,
            report=self.report,
            request=self.asked.append,
            clock=self.clock,
            vouching=self.vouching,
            bundles=Bundles(self._take),
        )

    def _take(self, block: Block) -> bool:
        self.read.append(block)
        return True

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def _look_around(self, clock_ms: int, floor_ms: int, gateway: GatewayStatus | None) -> Surroundings:
        return Surroundings(
            now_ms=max(clock_ms, floor_ms),
            mains_power=self.mains_power,
            idle_s=self.idle_s if gateway is not None else None,
            locked_by=("line-control",) if self.now < self.locked_until else (),
        )

    def clock(self) -> int:
        return int((self.now + self.clock_offset_s) * 1000)

    def sealed(self, build: RandomBuild) -> Envelope:
        return seal_bytes(build.manifest_bytes, MANIFEST_TYPE, [RELEASE])

    def order(self, build: RandomBuild, action: Action = Action.RUN, **changes: Any) -> Assignment:
        """What the server wants from now on; it is told again after every boot, as on a hello."""
        self.builds[build.digest] = build
        self.counter += 1
        assignment = Assignment(
            id=f"a{self.counter}",
            device=DEVICE,
            counter=self.counter,
            issued_ms=self.clock(),
            expires_ms=self.clock() + 10**9,
            model="m",
            version=build.manifest.version,
            build=build.digest,
            action=action,
            probation=Probation(seconds=3),
        )
        assignment = msgspec.structs.replace(assignment, **changes)
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
        self.deployments.tick(self.now, connected=self.connected)
        while self.read:
            self.deployments.block(self.read.popleft())
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
