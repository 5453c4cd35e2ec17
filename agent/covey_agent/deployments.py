"""Drives every model's deployment through the lifecycle table: one act a state, each of which may be done again.

Invariants: the book holds the new state before anything is done in it; after a kill, `advance` goes on from what the book
says; only a build that passed its probation becomes the active one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from covey_agent import fetch
from covey_agent.book import Book
from covey_agent.bundle import BundleError, Bundles
from covey_agent.core.acceptance import (
    Machine,
    Refusal,
    Room,
    Vouched,
    authenticate,
    check_release,
    examine,
    open_manifest,
    release_path,
)
from covey_agent.core.conditions import Surroundings, Wait, binding, waits_for
from covey_agent.core.lifecycle import PASSING, RESUME, Act, Event, may_mend, may_retry
from covey_agent.core.reports import report_of, report_of_refusal
from covey_agent.core.state import AgentState, Deployment, ModelRecord, candidate_of, moved, protected
from covey_agent.core.swap import Memory, SwapMode, choose
from covey_agent.downloads import Downloads
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import GatewayStatus, ModelSlots, Revert, Switch
from covey_agent.jobs import Finished, Jobs, Key
from covey_agent.orders import OrderFolder
from covey_agent.scrub import SCRUB, Scrub
from covey_agent.serving import RESTORE, Serving
from covey_agent.settings import Settings
from covey_agent.store import CorruptError, Store
from covey_agent.tuf.vouching import Vouching
from covey_contract.blocks import Block
from covey_contract.errors import ContractError
from covey_contract.lifecycle import State
from covey_contract.manifest import FileEntry, Manifest
from covey_contract.messages import Action, Assignment, BlockRequest, Broadcast, Offer, Order, Report
from covey_contract.reasons import Reason
from covey_contract.signing import Trust
from covey_contract.wire import decode

log = logging.getLogger(__name__)

VERIFY, LOAD, VOUCH, REFRESH = "verify", "load", "vouch", "refresh"
# In which a build's bytes may still be needed from where they come.
FETCHED_IN = frozenset({State.ASSIGNED, State.FETCHING, State.VERIFYING})
_CORRUPT_LIMIT = 3
_STORAGE_PAUSE_S = 3.0
# An order by an unknown key makes the device ask for the newest root, not more often than this.
_ASK_AGAIN_S = 60.0
# What a deployment waits for may change every second; it is stored and told no more often than this.
_TELL_WAIT_MS = 10_000
# What says nothing about the build itself: the start is tried again, up to the limit.
_TRY_AGAIN = frozenset({Reason.RUNNER_CRASHED, Reason.RUNNER_HUNG, Reason.LOAD_TIMEOUT})


class Deployments:
    """Called by the control loop alone. `vouching` asks the repository of releases; None: this device enrolled before there was one,
    and the release key's signature is what counts. `surroundings` is asked when an order has conditions; `free` gives the disk's free bytes,
    `memory` the available MB; `report` spools, `request` asks the server for blocks, `listen` begins or
    ends to hear what is broadcast of a build, `web` gets blocks by HTTPS where it can, `bundles` those of builds that came on a stick."""

    def __init__(
        self,
        device: str,
        trust: Trust,
        settings: Settings,
        *,
        book: Book,
        store: Store,
        serving: Serving,
        jobs: Jobs,
        machine: Callable[[], Machine],
        surroundings: Callable[[int, int, GatewayStatus | None], Surroundings],
        free: Callable[[], int],
        memory: Callable[[], float],
        report: Callable[[Report], None],
        request: Callable[[BlockRequest], None],
        clock: Callable[[], int],
        vouching: Vouching | None = None,
        listen: Callable[[str, bool], None] = lambda _build, _on: None,
        web: Callable[[BlockRequest, FileEntry, int, Offer], bool] = lambda _request, _entry, _size, _offer: False,
        bundles: Bundles | None = None,
    ) -> None:
        self._device = device
        self._trust = trust
        self._settings = settings
        self._book = book
        self._store = store
        self._serving = serving
        self._jobs = jobs
        self._machine = machine
        self._surroundings = surroundings
        self._free = free
        self._memory = memory
        self._report = report
        self._clock = clock
        self._orders = OrderFolder(settings.state / "orders", trust)
        self._bundles = bundles or Bundles(lambda _block: False)
        self._downloads = Downloads(
            *(settings.state / "fetch", store, settings.fetch, request, listen),
            lambda *wanted: self._bundles.ask(*wanted) or web(*wanted),
        )
        self._scrub = Scrub(store, jobs, settings.scrub_every_s)
        self._vouching = vouching
        self._vouched: dict[int, Vouched] = {}  # by the order's counter
        # An order that waits for the newest root, and the bundle that it came in.
        self._unknown_key: tuple[bytes, Path | None] | None = None
        self._asked = -_ASK_AGAIN_S
        self._corrupt: dict[int, int] = {}
        self._judge_until: dict[int, float] = {}
        self._not_before: dict[str, float] = {}
        self._waiting: deque[bytes] = deque(maxlen=8)
        self._refused: deque[str] = deque(maxlen=64)
        self._now = 0.0
        self._connected = False
        self._acts: dict[Act, Callable[[str, ModelRecord, Deployment], None]] = {
            Act.EXAMINE: self._examine,
            Act.FETCH: self._fetch,
            Act.VERIFY: self._verify,
            Act.WAIT_TO_LOAD: self._wait_to_load,
            Act.LOAD: self._load,
            Act.SWITCH_AND_JUDGE: self._judge,
            Act.KEEP_SERVING: self._keep_serving,
        }

    # --- what happens -----------------------------------------------------------------------------------------------

    def tick(self, now: float, *, connected: bool) -> None:
        """Time has passed: go on with everything. `now` is monotonic seconds."""
        self._now, self._connected = now, connected
        for payload in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            self.order(payload)
        for model in list(self._book.state.models):
            self.advance(model)
        self._scrub.tick(now, lambda: sorted(protected(self._book.state)))

    def tell_again(self, spooled: Iterable[Report]) -> None:
        """After a run that did not end well: what it had done last may be in the book and not in the spool. `spooled`: newest first; the
        server would believe the newest of a model, though the hello has told it better."""
        newest: dict[str, Report] = {}
        for report in spooled:
            newest.setdefault(report.model, report)
        for model, record in self._book.state.models.items():
            last, deployment = newest.get(model), record.deployment
            if last is None or deployment is None:
                continue
            if (last.assignment, last.state) != (deployment.order.id, deployment.state):
                self.tell(model, record)

    @property
    def directors(self) -> tuple[bytes, ...]:
        """The keys for orders, by the newest root."""
        return self._trust.director

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, and does not wait for a condition."""
        return any(
            record.deployment is not None and not record.deployment.state.final and not record.deployment.waiting
            for record in self._book.state.models.values()
        )

    def broadcast(self, message: Broadcast) -> None:
        """The server says how the broadcast of a build stands."""
        self._downloads.note(message, self._now)

    def block(self, block: Block, *, broadcast: bool = False) -> None:
        for model, trouble in self._downloads.take(block, self._now, broadcast=broadcast):
            if trouble is not None:
                self._fail(model, trouble)
            self.advance(model)

    def order(self, payload: bytes) -> None:
        """An order has arrived, from whomever. What is not a true, new order for this device changes nothing."""
        try:
            order = decode(Order, payload)
        except ContractError as error:
            log.warning("an order that cannot be read: %s", error)
            return
        state = self._book.state
        now_ms = self._effective_time()
        try:
            assignment = authenticate(
                order.assignment, trust=self._trust, device=self._device, counter=state.counter, now_ms=now_ms
            )
        except Refusal as refusal:
            if refusal.reason is not Reason.BAD_SIGNATURE or not self._ask_for_keys(payload):
                self._turn_away(order, refusal)
            return
        self._accept(assignment, payload)

    def install(self, payload: bytes, bundle: Path) -> Refusal | None:
        """An order has come in a bundle: it is held to what one that came over the network is held to, and followed from there. None:
        it is followed, or will be looked at again when the bundle's root has been read.

        What is not signed as it should be is turned away before anything is written, the manifest too: the order may be good, and
        come again. Raises `BundleError`, `ContractError`, `OSError`."""
        order = decode(Order, payload)
        counter = self._book.state.counter
        known = self._known(order)
        try:
            assignment = authenticate(
                order.assignment,
                trust=self._trust,
                device=self._device,
                counter=counter if known is None else known.order.counter - 1,
                now_ms=self._effective_time(),
            )
            open_manifest(assignment, order.manifest, self._trust)
        except Refusal as refusal:
            if refusal.reason is Reason.BAD_SIGNATURE and self._ask_for_keys(payload, bundle):
                return None
            self._turn_away(order, refusal)
            return refusal
        self._bundles.attach(assignment.build, bundle)
        if known is None:
            self._accept(assignment, payload)
        else:
            self._go_on(known, payload)
        return None

    def _known(self, order: Order) -> Deployment | None:
        """The deployment that follows this very order. Nothing is believed of the order yet."""
        try:
            claimed = decode(Assignment, order.assignment.payload)
        except ContractError:
            return None
        deployment = self._book.state.record(claimed.model).deployment
        return deployment if deployment is not None and deployment.order == claimed else None

    def _go_on(self, deployment: Deployment, payload: bytes) -> None:
        """An order that is being followed has come once more, with a bundle: what was missing may be there. Raises `OSError`."""
        model = deployment.order.model
        if may_mend(deployment.state, deployment.reason):
            self._orders.store(deployment.order, payload)
            self._move(model, Event.RETRY)
        elif deployment.state not in FETCHED_IN:
            self._bundles.drop(deployment.build)
        self.advance(model)

    def _accept(self, assignment: Assignment, payload: bytes) -> None:
        try:
            self._take(assignment, payload)
        except OSError as error:
            log.error("the order %s cannot be stored (%s); trying again", assignment.id, error)
            self._waiting.append(payload)
            self._not_before[assignment.model] = self._now + _STORAGE_PAUSE_S

    def finished(self, finished: Finished) -> None:
        """A job has ended."""
        self._jobs.settled(finished)
        model = finished.key.model
        record = self._book.state.record(model)
        deployment = record.deployment
        try:
            if finished.key.what == REFRESH:
                self._heard_of_keys()
            elif finished.key.what == SCRUB:
                self._scrubbed(finished)
            elif finished.key.what == RESTORE:
                self._serving.restored(finished, self._now, self.tell)
            elif deployment is not None and deployment.order.counter == finished.key.counter:
                if finished.key.what == VOUCH and deployment.state is State.ASSIGNED:
                    self._heard_of_release(model, finished)
                elif finished.key.what == VERIFY and deployment.state is State.VERIFYING:
                    self._verified(model, deployment, finished)
                elif finished.key.what == LOAD and deployment.state is State.WARMING:
                    self._loaded(model, deployment, finished)
        except OSError as error:
            self._storage_trouble(model, error)
        self.advance(model)

    def _scrubbed(self, finished: Finished) -> None:
        """What is damaged is fetched again, where an order still says what it should be; of a build to go back to there is none."""
        if (build := self._scrub.finished(finished)) is None:
            return
        log.error("build %s: %s", build[:12], finished.trouble)
        for model, record in list(self._book.state.models.items()):
            deployment = record.deployment
            if record.active == build and deployment is not None and deployment.state is State.ACTIVE:
                self._move(model, Event.DAMAGED, Reason.DIGEST_MISMATCH, f"{finished.trouble}; it is fetched again")
            elif record.previous == build:
                new = msgspec.structs.replace(record, previous=None)
                self._book.change(lambda state, model=model, new=new: state.with_record(model, new))  # type: ignore[misc]

    def advance(self, model: str) -> None:
        """Do what the model's state asks for, until nothing more can be done now."""
        while (deployment := self._book.state.record(model).deployment) is not None:
            if self._now < self._not_before.get(model, 0.0):
                return
            try:
                self._acts[RESUME[deployment.state]](model, self._book.state.record(model), deployment)
            except StepError as error:
                self._fail(model, error)
            except OSError as error:
                self._storage_trouble(model, error)
                return
            if self._book.state.record(model).deployment is deployment:
                return

    # --- one act for each kind of state -----------------------------------------------------------------------------

    def _examine(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        order = deployment.order
        if record.pinned is not None and order.build != record.active:
            self._move(model, Event.REFUSED, Reason.PINNED, record.pinned)
            return
        if order.action is Action.REMOVE:
            self._move(model, Event.REMOVE)
            return
        if self._jobs.is_pending(_vouch_key(order)):
            return
        self.collect()
        try:
            if order.build == record.active:
                self._move(model, Event.CURRENT)
                return
            envelope = self._orders.read(order).manifest
            manifest, _ = open_manifest(order, envelope, self._trust)
            fit = examine(
                order,
                envelope,
                trust=self._trust,
                machine=self._machine(),
                room=self._room(manifest, order.build),
                now_ms=self._effective_time(),
            )
            if self._vouching is not None:
                vouched = self._vouched.pop(order.counter, None)
                if vouched is None:
                    self._ask_for_release(self._vouching, order, release_path(manifest))
                    return
                floor, retained = record.release_floor, order.build == record.previous
                check_release(fit, vouched, floor=floor, retained=retained)
                self._note_release(model, vouched)
        except Refusal as refusal:
            self._move(model, Event.REFUSED, refusal.reason, refusal.detail)
            return
        self._move(model, Event.ACCEPTED, detail="; ".join(fit.notes))

    def _ask_for_release(self, vouching: Vouching, order: Assignment, path: str) -> None:
        floor_ms = self._effective_time()
        # The network knows more than any stick.
        bundle = self._bundles.path(order.build) if not self._connected else None

        def work() -> None:
            self._vouched[order.counter] = vouching.ask(path, floor_ms, bundle)

        self._jobs.submit(_vouch_key(order), work)

    def _heard_of_release(self, model: str, finished: Finished) -> None:
        trouble = finished.trouble
        if isinstance(trouble, StepError) and trouble.reason not in PASSING and trouble.reason is not Reason.INTERNAL:
            self._move(model, Event.REFUSED, trouble.reason, trouble.detail)
        elif isinstance(trouble, StepError | GatewayError):
            self._fail(model, trouble)

    def _note_release(self, model: str, vouched: Vouched) -> None:
        """The release's counter, and what else its metadata have shown, on disk before the build is fetched. Raises `OSError`."""

        def edit(state: AgentState) -> AgentState:
            record = state.record(model)
            assert record.deployment is not None, "it is being examined"  # noqa: S101
            deployment = msgspec.structs.replace(record.deployment, release=vouched.release)
            state = state.with_record(model, msgspec.structs.replace(record, deployment=deployment))
            return msgspec.structs.replace(state, time_floor_ms=max(state.time_floor_ms, vouched.time_ms))

        self._book.change(edit)
        self._trust_directors(vouched.director)

    # --- who may give orders ----------------------------------------------------------------------------------------

    def _ask_for_keys(self, payload: bytes, bundle: Path | None = None) -> bool:
        """An order by an unknown key: root may name another by now. Whether it is asked for; the order is looked at again then."""
        if self._vouching is None or self._now < self._asked + _ASK_AGAIN_S:
            return False
        self._asked = self._now
        self._unknown_key = (payload, bundle)
        vouching, floor_ms = self._vouching, self._effective_time()
        return self._jobs.submit(Key("", REFRESH, ""), lambda: vouching.refresh(floor_ms, bundle))

    def _heard_of_keys(self) -> None:
        waiting, self._unknown_key = self._unknown_key, None
        if self._vouching is not None:
            self._trust_directors(self._vouching.directors())
        if waiting is None:
            return
        payload, bundle = waiting
        if bundle is None:
            self.order(payload)
            return
        try:
            self.install(payload, bundle)
        except (BundleError, ContractError) as error:
            log.warning("an order from %s is not followed: %s", bundle, error)

    def _trust_directors(self, keys: tuple[bytes, ...]) -> None:
        if keys and keys != self._trust.director:
            log.warning("the keys for orders are others now, by the newest root")
            self._trust = msgspec.structs.replace(self._trust, director=keys)

    def _fetch(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        manifest, _ = self._orders.manifest(deployment.order)
        if self._downloads.go_on(
            *(model, deployment.build, manifest, self._now),
            connected=self._connected or self._bundles.path(deployment.build) is not None,
            offer=lambda: self._orders.read(deployment.order).offer,
        ):
            self._stop_fetching(model)
            self._move(model, Event.FETCHED)
        elif (progress := self._downloads.progress(model)) is not None:
            fraction, fetched = progress
            self._report(report_of(record, deployment, now_ms=self._clock(), progress=fraction, fetched=fetched))

    def _verify(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        del record
        manifest, manifest_bytes = self._orders.manifest(deployment.order)
        folder = self._downloads.folder(deployment.build)

        def work() -> None:
            fetch.adopt_all(manifest, folder, self._store)
            self._store.stage(manifest, manifest_bytes)

        self._jobs.submit(Key(model, VERIFY, deployment.build, deployment.order.counter), work)

    def _verified(self, model: str, deployment: Deployment, finished: Finished) -> None:
        if finished.trouble is None:
            whole = self._book.state.record(model).active == deployment.build
            self._move(model, Event.MENDED if whole else Event.VERIFIED)
            self._downloads.drop(deployment.build)
        elif isinstance(finished.trouble, CorruptError):
            tries = self._corrupt[deployment.order.counter] = self._corrupt.get(deployment.order.counter, 0) + 1
            if tries >= _CORRUPT_LIMIT:
                self._downloads.drop(deployment.build)
                self._fail(model, StepError(Reason.DIGEST_MISMATCH, f"{finished.trouble}, {tries} times"))
            else:
                self._move(model, Event.CORRUPT, Reason.DIGEST_MISMATCH, str(finished.trouble))
        else:
            self._fail(model, finished.trouble)

    def _wait_to_load(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        if deployment.starts >= self._settings.max_starts:
            detail = f"started {deployment.starts} times ({deployment.detail}); not again until a newer assignment"
            raise StepError(Reason.QUARANTINED, detail)
        self._serving.reconcile(model, self._now)
        if (wait := self._waits_for(deployment)) is not None:
            self._hold(model, deployment, wait)
        elif self._serving.ready_for_candidate(model, record):
            self._move(model, Event.WARM)

    def _waits_for(self, deployment: Deployment) -> Wait | None:
        """What holds the build up; raises `StepError` once its order has expired over it."""
        conditions = binding(deployment.order)
        if conditions is None:
            return None
        here = self._surroundings(self._clock(), self._book.state.time_floor_ms, self._serving.status)
        wait = waits_for(conditions, here)
        if here.now_ms >= deployment.order.expires_ms:
            why = wait.detail if wait is not None else "while its conditions did not hold"
            raise StepError(Reason.EXPIRED, f"the order expired before the device might follow it: {why}")
        return wait

    def _hold(self, model: str, deployment: Deployment, wait: Wait) -> None:
        told = (deployment.reason, deployment.waits_until_ms)
        since = abs(self._clock() - deployment.since_ms)  # the clock may have been set back
        if told != (wait.reason, wait.until_ms) and (not deployment.waiting or since >= _TELL_WAIT_MS):
            self._move(model, Event.HELD, wait.reason, wait.detail, wait.until_ms)

    def _load(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        slots = self._serving.slots(model)
        mine = [one for one in (slots.runners if slots else ()) if one.build == deployment.build]
        if slots is not None and slots.candidate == deployment.build and any(one.state == "ready" for one in mine):
            self._move(model, Event.LOADED)
            return
        self._serving.reconcile(model, self._now)
        if not any(one.state == "loading" for one in mine) and self._serving.ready_for_candidate(model, record):
            in_place = record.active is not None and self._swap_mode(slots, deployment) is SwapMode.SEQUENTIAL
            beside = record.active is not None and not in_place
            self._jobs.submit(
                Key(model, LOAD, deployment.build, deployment.order.counter),
                lambda: self._serving.load(model, deployment.build, background=beside, in_place=in_place),
            )

    def _swap_mode(self, slots: ModelSlots | None, deployment: Deployment) -> SwapMode:
        """Beside the build that serves or in its place, by what the build's runner took where it was built, or what that one takes."""
        measured = self._orders.manifest(deployment.order)[0].memory_mb
        serving = [one.rss_mb for one in (slots.runners if slots is not None else ()) if one.state == "serving"]
        needed = measured or (serving[0] if serving else None)
        mode = choose(self._settings.swap, Memory(needed, self._memory(), self._settings.memory_margin_mb))
        if mode is SwapMode.SEQUENTIAL:
            log.info("%s: %s in place of the build that serves", deployment.order.model, deployment.build[:12])
        return mode

    def _loaded(self, model: str, deployment: Deployment, finished: Finished) -> None:
        self._serving.refresh()
        trouble = finished.trouble
        if trouble is None:
            self._move(model, Event.LOADED)
        elif isinstance(trouble, GatewayError) or (isinstance(trouble, StepError) and trouble.reason in _TRY_AGAIN):
            last = deployment.starts >= self._settings.max_starts
            if last and isinstance(trouble, StepError):
                self._fail(model, StepError(trouble.reason, f"{trouble.detail}; tried {deployment.starts} times"))
            else:
                self._move(model, Event.INTERRUPTED, detail=str(trouble))
        elif isinstance(trouble, CorruptError):
            self._fail(model, StepError(Reason.DIGEST_MISMATCH, str(trouble)))
        else:
            self._fail(model, trouble)

    def _judge(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """Switch if that is not done yet; then wait for the end of probation, or for the gateway to go back."""
        del record
        if self._serving.status is None:
            return
        slots, build = self._serving.slots(model), deployment.build
        reverted = slots.reverted if slots is not None else None
        if slots is not None and slots.active == build:
            self._wait_for_end_of_probation(model, deployment)
        elif slots is not None and slots.candidate == build:
            if self._serving.ask(Switch(model=model, build=build, probation=deployment.order.probation)):
                self._judge_until[deployment.order.counter] = self._now + deployment.order.probation.seconds
        elif reverted is not None and reverted.build == build and self._is_of_now(reverted.time_ms, deployment):
            self._move(model, Event.REVERTED, reverted.reason, reverted.detail)
        elif deployment.starts >= self._settings.max_starts:
            self._move(
                model,
                Event.REVERTED,
                Reason.PROBATION_INTERRUPTED,
                f"the gateway lost it {deployment.starts} times in probation",
            )
        else:
            self._move(model, Event.INTERRUPTED, Reason.PROBATION_INTERRUPTED, "the gateway that served it is gone")

    def _is_of_now(self, time_ms: int, deployment: Deployment) -> bool:
        """Whether it was after the deployment came to its state. A clock that was set back since cannot tell; what is newest counts."""
        return time_ms >= deployment.since_ms or self._clock() < deployment.since_ms

    def _wait_for_end_of_probation(self, model: str, deployment: Deployment) -> None:
        seconds = deployment.order.probation.seconds
        passed = max(0.0, (self._clock() - deployment.since_ms) / 1000)
        until = self._judge_until.setdefault(deployment.order.counter, self._now + max(0.0, seconds - passed))
        if self._now >= until:
            self._move(model, Event.PASSED)
            self._judge_until.pop(deployment.order.counter, None)
            self.collect()

    def _keep_serving(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        self._serving.reconcile(model, self._now)
        if deployment.reason is Reason.PINNED:
            if record.pinned is None and self._clock() < deployment.order.expires_ms:
                self._move(model, Event.RETRY)
        elif may_retry(deployment.state, deployment.reason):
            pause = min(self._settings.retry_most_s, self._settings.retry_first_s * 2.0 ** min(deployment.retries, 16))
            now_ms = self._clock()
            paused = not 0 <= now_ms - deployment.since_ms < pause * 1000  # the clock may have been set back
            if paused and now_ms < deployment.order.expires_ms:
                self._move(model, Event.RETRY)

    # --- orders -----------------------------------------------------------------------------------------------------

    def _take(self, order: Assignment, payload: bytes) -> None:
        """A true and newer order: stored, then followed. Raises `OSError`."""
        model = order.model
        current = self._book.state.record(model).deployment
        self._orders.store(order, payload)
        if current is not None and not current.state.final:
            self._stop_fetching(model)
            on_trial = current.state is State.PROBATION
            self._move(model, Event.SUPERSEDED, Reason.SUPERSEDED, f"by order {order.id}")
            slots = self._serving.slots(model)
            if on_trial and slots is not None and slots.active == current.build and slots.previous is not None:
                self._serving.ask(Revert(model=model, reason=Reason.SUPERSEDED, detail=f"by order {order.id}"))

        def edit(state: AgentState) -> AgentState:
            deployment = Deployment(order=order, since_ms=self._clock())
            record = msgspec.structs.replace(state.record(model), deployment=deployment, broken={})
            return msgspec.structs.replace(
                state.with_record(model, record),
                counter=order.counter,
                time_floor_ms=max(state.time_floor_ms, order.issued_ms),
            )

        self._book.change(edit)
        if current is not None and current.build != order.build:
            self._bundles.drop(current.build)
        self._not_before.pop(model, None)
        log.info("%s: order %s (%s %s, build %s)", model, order.id, order.action, order.version, order.build[:12])
        self.tell(model, self._book.state.record(model))
        self.advance(model)

    def _turn_away(self, order: Order, refusal: Refusal) -> None:
        known = {
            record.deployment.order.id for record in self._book.state.models.values() if record.deployment is not None
        }
        if refusal.reason is Reason.OLD_COUNTER and refusal.order is not None and refusal.order.id in known:
            return  # it is only told again
        claimed = refusal.order
        if claimed is None:
            # What is not signed is read for one end only: to name in the report what was refused.
            try:
                claimed = decode(Assignment, order.assignment.payload)
            except ContractError:
                claimed = None
        log.warning("an order is refused: %s: %s", refusal.reason, refusal.detail)
        if claimed is None or (told := f"{refusal.reason} {claimed.id}") in self._refused:
            return
        self._refused.append(told)
        record = self._book.state.record(claimed.model)
        self._report(report_of_refusal(claimed, refusal, record, now_ms=self._clock()))

    # --- the rest ---------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Garbage collection: builds that are neither active, previous nor candidate, and fetches of no deployment."""
        keep = protected(self._book.state)
        for build in self._store.collect(keep):
            log.info("build %s is removed", build[:12])
        records = self._book.state.models.values()
        self._downloads.sweep({candidate for record in records if (candidate := candidate_of(record)) is not None})
        self._orders.sweep({record.deployment.order.counter for record in records if record.deployment is not None})

    def _room(self, manifest: Manifest, build: str) -> Room:
        missing = sum(entry.size for entry in self._store.missing(manifest))
        partial = self._downloads.on_disk(build)
        return Room(
            free=self._free(),
            margin=self._settings.margin,
            quota=self._settings.quota,
            used=self._store.used(),
            have=manifest.size - missing + min(partial, missing + manifest.table.size),
        )

    def _stop_fetching(self, model: str) -> None:
        fetched = self._downloads.stop(model)
        record = self._book.state.record(model)
        if record.deployment is None or not fetched:
            return
        deployment = msgspec.structs.replace(record.deployment, bytes_fetched=record.deployment.bytes_fetched + fetched)
        new = msgspec.structs.replace(record, deployment=deployment)
        self._book.change(lambda state: state.with_record(model, new))

    def stop(self) -> None:
        """The agent ends: what was fetched is kept."""
        self._downloads.stop_all()

    def _effective_time(self) -> int:
        return max(self._clock(), self._book.state.time_floor_ms)

    def _move(
        self,
        model: str,
        event: Event,
        reason: Reason = Reason.NONE,
        detail: str = "",
        until_ms: int | None = None,
    ) -> None:
        """The transition: on disk first, then told. Raises `OSError`, and then nothing has changed."""
        old = self._book.state.record(model)
        new = moved(old, event, now_ms=self._clock(), reason=reason, detail=detail[:1900], until_ms=until_ms)
        self._book.change(lambda state: state.with_record(model, new))
        if new.deployment is not None and new.deployment.state not in FETCHED_IN and event is not Event.SUPERSEDED:
            self._bundles.drop(new.deployment.build)
        self.tell(model, new)

    def _fail(self, model: str, error: StepError | GatewayError) -> None:
        """The deployment has failed, or, where the disk does not even take that, will be tried again."""
        reason, detail = (error.reason, error.detail) if isinstance(error, StepError) else (Reason.INTERNAL, str(error))
        try:
            self._stop_fetching(model)
            if reason in (Reason.NO_SPACE, Reason.STORAGE_ERROR):
                self.collect()
            self._move(model, Event.FAIL, reason, detail)
        except OSError as trouble:
            self._storage_trouble(model, trouble)

    def _storage_trouble(self, model: str, error: OSError) -> None:
        log.error("%s: the state cannot be stored (%s); trying again in %.0f s", model, error, _STORAGE_PAUSE_S)
        self._not_before[model] = self._now + _STORAGE_PAUSE_S

    def tell(self, model: str, record: ModelRecord) -> None:
        """The server shall know of it."""
        deployment = record.deployment
        if deployment is None:
            return
        words = " ".join(word for word in (deployment.reason, deployment.detail) if word and word != Reason.NONE)
        log.info("%s %s: %s%s", model, deployment.order.version, deployment.state, f" ({words})" if words else "")
        self._report(report_of(record, deployment, now_ms=self._clock()))


def _vouch_key(order: Assignment) -> Key:
    return Key(order.model, VOUCH, order.build, order.counter)
