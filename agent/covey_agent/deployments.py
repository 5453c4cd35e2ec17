"""Drives every model's deployment through the lifecycle table: one act a state, each of which may be done again.

Invariants: the book holds the new state before anything is done in it; after a kill, `advance` goes on from what the book
says; only a build that passed its probation becomes the active one.

How orders come in is in `intake`; the acts are in `acquisition` and `trial`. Here is what all of them come to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from covey_agent.acquisition import VERIFY, VOUCH, Acquisition
from covey_agent.book import Book
from covey_agent.bundle import Bundles
from covey_agent.core.acceptance import Machine, Refusal
from covey_agent.core.conditions import Surroundings
from covey_agent.core.lifecycle import RESUME, Act, Event, may_mend
from covey_agent.core.state import AgentState, Deployment, ModelRecord, candidate_of, protected
from covey_agent.downloads import Downloads
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import GatewayStatus, Revert
from covey_agent.intake import REFRESH, Intake
from covey_agent.jobs import Finished, Jobs
from covey_agent.keyring import Keyring
from covey_agent.orders import OrderFolder
from covey_agent.scrub import SCRUB, Scrub
from covey_agent.serving import RESTORE, Serving
from covey_agent.settings import Settings
from covey_agent.store import Store
from covey_agent.transitions import FETCHED_IN, Present, Transitions
from covey_agent.trial import LOAD, Trial
from covey_agent.tuf.vouching import Vouching
from covey_contract.blocks import Block
from covey_contract.lifecycle import State
from covey_contract.manifest import FileEntry
from covey_contract.messages import Assignment, BlockRequest, Broadcast, Offer, Report
from covey_contract.reasons import Reason
from covey_contract.signing import Trust

log = logging.getLogger(__name__)

_STORAGE_PAUSE_S = 3.0


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
        self._book = book
        self._store = store
        self._serving = serving
        self._jobs = jobs
        self._clock = clock
        self._orders = OrderFolder(settings.state / "orders", trust)
        self._bundles = on_sticks = bundles or Bundles(lambda _block: False)
        self._downloads = Downloads(
            *(settings.state / "fetch", store, settings.fetch, request, listen),
            lambda *wanted: on_sticks.ask(*wanted) or web(*wanted),
        )
        self._scrub = Scrub(store, jobs, settings.scrub_every_s)
        self._not_before: dict[str, float] = {}
        self._present = Present()
        self._keyring = Keyring(trust)
        self._transitions = Transitions(book, self._bundles, clock, report)
        self._intake = Intake(
            *(device, self._keyring, self._present),
            book=book,
            jobs=jobs,
            bundles=self._bundles,
            vouching=vouching,
            follower=self,
            report=report,
            clock=clock,
            effective_ms=self._effective_ms,
        )
        self._acquisition = Acquisition(
            *(settings, self._keyring, self._present, self._transitions),
            book=book,
            store=store,
            jobs=jobs,
            orders=self._orders,
            downloads=self._downloads,
            bundles=self._bundles,
            vouching=vouching,
            machine=machine,
            free=free,
            collect=self.collect,
            report=report,
            clock=clock,
            effective_ms=self._effective_ms,
        )
        self._trial = Trial(
            *(settings, self._present, self._transitions),
            book=book,
            serving=serving,
            jobs=jobs,
            orders=self._orders,
            surroundings=surroundings,
            memory=memory,
            clock=clock,
            passed=self.collect,
        )
        self._acts: dict[Act, Callable[[str, ModelRecord, Deployment], None]] = {
            Act.EXAMINE: self._acquisition.examine,
            Act.FETCH: self._acquisition.fetch,
            Act.VERIFY: self._acquisition.verify,
            Act.WAIT_TO_LOAD: self._trial.wait_to_load,
            Act.LOAD: self._trial.load,
            Act.SWITCH_AND_JUDGE: self._trial.judge,
            Act.KEEP_SERVING: self._trial.keep_serving,
        }

    @property
    def directors(self) -> tuple[bytes, ...]:
        """The keys for orders, by the newest root."""
        return self._keyring.directors

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, and does not wait for a condition."""
        return any(
            record.deployment is not None and not record.deployment.state.final and not record.deployment.waiting
            for record in self._book.state.models.values()
        )

    # --- what happens -----------------------------------------------------------------------------------------------

    def tick(self, now: float, *, connected: bool) -> None:
        """Time has passed: go on with everything. `now` is monotonic seconds."""
        self._present.now, self._present.connected = now, connected
        self._intake.tick()
        for model in list(self._book.state.models):
            self.advance(model)
        self._scrub.tick(now, lambda: sorted(protected(self._book.state)))

    def order(self, payload: bytes) -> None:
        """An order has arrived, from whomever."""
        self._intake.order(payload)

    def install(self, payload: bytes, bundle: Path) -> Refusal | None:
        """An order has come in a bundle: see `Intake.install`, also for what it raises."""
        return self._intake.install(payload, bundle)

    def broadcast(self, message: Broadcast) -> None:
        """The server says how the broadcast of a build stands."""
        self._downloads.note(message, self._present.now)

    def block(self, block: Block, *, broadcast: bool = False) -> None:
        for model, trouble in self._downloads.take(block, self._present.now, broadcast=broadcast):
            if trouble is not None:
                self._fail(model, trouble)
            self.advance(model)

    def finished(self, finished: Finished) -> None:
        """A job has ended."""
        self._jobs.settled(finished)
        model = finished.key.model
        try:
            self._take_result(model, finished)
        except (StepError, GatewayError) as error:
            self._fail(model, error)
        except OSError as error:
            self._storage_trouble(model, error)
        self.advance(model)

    def _take_result(self, model: str, finished: Finished) -> None:
        """Results that nobody waits for any longer are dropped. Raises what the act that takes it raises."""
        what, deployment = finished.key.what, self._book.state.record(model).deployment
        if what == REFRESH:
            self._intake.refreshed()
        elif what == SCRUB:
            self._scrubbed(finished)
        elif what == RESTORE:
            self._serving.restored(finished, self._present.now, self.tell)
        elif deployment is None or deployment.order.counter != finished.key.counter:
            return
        elif what == VOUCH and deployment.state is State.ASSIGNED:
            self._acquisition.heard_of_release(model, finished)
        elif what == VERIFY and deployment.state is State.VERIFYING:
            self._acquisition.verified(model, deployment, finished)
        elif what == LOAD and deployment.state is State.WARMING:
            self._trial.loaded(model, deployment, finished)

    def advance(self, model: str) -> None:
        """Do what the model's state asks for, until nothing more can be done now."""
        while (deployment := self._book.state.record(model).deployment) is not None:
            if self._present.now < self._not_before.get(model, 0.0):
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

    # --- orders that were let in ------------------------------------------------------------------------------------

    def follow(self, order: Assignment, payload: bytes) -> bool:
        """A true and newer order: stored, then followed. False: it cannot be stored now."""
        try:
            self._supersede(order, payload)
        except OSError as error:
            log.error("the order %s cannot be stored (%s); trying again", order.id, error)
            self._not_before[order.model] = self._present.now + _STORAGE_PAUSE_S
            return False
        self.advance(order.model)
        return True

    def _supersede(self, order: Assignment, payload: bytes) -> None:
        """What was followed for this model ends, and this order is what is followed. Raises `OSError`."""
        model = order.model
        current = self._book.state.record(model).deployment
        self._orders.store(order, payload)
        if current is not None and not current.state.final:
            self._acquisition.stop(model)
            on_trial = current.state is State.PROBATION
            self._transitions.move(model, Event.SUPERSEDED, Reason.SUPERSEDED, f"by order {order.id}")
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

    def go_on(self, deployment: Deployment, payload: bytes) -> None:
        """An order that is being followed has come once more, with a bundle: what was missing may be there. Raises `OSError`."""
        model = deployment.order.model
        if may_mend(deployment.state, deployment.reason):
            self._orders.store(deployment.order, payload)
            self._transitions.move(model, Event.RETRY)
        elif deployment.state not in FETCHED_IN:
            self._bundles.drop(deployment.build)
        self.advance(model)

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _scrubbed(self, finished: Finished) -> None:
        """What is damaged is fetched again, where an order still says what it should be; of a build to go back to there is none."""
        if (build := self._scrub.finished(finished)) is None:
            return
        log.error("build %s: %s", build[:12], finished.trouble)
        for model, record in list(self._book.state.models.items()):
            deployment = record.deployment
            if record.active == build and deployment is not None and deployment.state is State.ACTIVE:
                detail = f"{finished.trouble}; it is fetched again"
                self._transitions.move(model, Event.DAMAGED, Reason.DIGEST_MISMATCH, detail)
            elif record.previous == build:
                new = msgspec.structs.replace(record, previous=None)
                self._book.change(lambda state, model=model, new=new: state.with_record(model, new))  # type: ignore[misc]

    def _fail(self, model: str, error: StepError | GatewayError) -> None:
        """The deployment has failed, or, where the disk does not even take that, will be tried again."""
        reason, detail = (error.reason, error.detail) if isinstance(error, StepError) else (Reason.INTERNAL, str(error))
        try:
            self._acquisition.stop(model)
            if reason in (Reason.NO_SPACE, Reason.STORAGE_ERROR):
                self.collect()
            self._transitions.move(model, Event.FAIL, reason, detail)
        except OSError as trouble:
            self._storage_trouble(model, trouble)

    def _storage_trouble(self, model: str, error: OSError) -> None:
        log.error("%s: the state cannot be stored (%s); trying again in %.0f s", model, error, _STORAGE_PAUSE_S)
        self._not_before[model] = self._present.now + _STORAGE_PAUSE_S

    # --- the rest ---------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Garbage collection: builds that are neither active, previous nor candidate, and fetches of no deployment."""
        keep = protected(self._book.state)
        for build in self._store.collect(keep):
            log.info("build %s is removed", build[:12])
        records = self._book.state.models.values()
        self._downloads.sweep({candidate for record in records if (candidate := candidate_of(record)) is not None})
        self._orders.sweep({record.deployment.order.counter for record in records if record.deployment is not None})

    def tell(self, model: str, record: ModelRecord) -> None:
        """The server shall know of it."""
        self._transitions.tell(model, record)

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

    def stop(self) -> None:
        """The agent ends: what was fetched is kept."""
        self._downloads.stop_all()

    def _effective_ms(self) -> int:
        return max(self._clock(), self._book.state.time_floor_ms)
