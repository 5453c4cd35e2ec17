"""Keeps the gateway serving what the book says, whatever happened to either of them.

Level-triggered: it compares the gateway's status with each model's record and does the one thing that is missing, so that there
is no difference between a normal step, a restart of control and a restart of the gateway.
Invariant: only a build that was verified, byte by byte, is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from covey_agent.book import Book
from covey_agent.core.lifecycle import Event
from covey_agent.core.state import ModelRecord, moved
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import (
    GatewayStatus,
    Load,
    ModelSlots,
    Request,
    Revert,
    Settle,
    Switch,
    Unload,
)
from covey_agent.gateway_client import GatewayClient
from covey_agent.jobs import Finished, Jobs, Key
from covey_agent.settings import Settings
from covey_agent.store import CorruptError, Store
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

RESTORE = "restore"
_PAUSE_S = 1.0

Changed = Callable[[str, ModelRecord], None]


class Serving:
    """`seen` takes every new status of the gateway; `reconcile` acts on it, one model at a time."""

    def __init__(
        self,
        settings: Settings,
        book: Book,
        store: Store,
        gateway: GatewayClient,
        jobs: Jobs,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._book = book
        self._store = store
        self._gateway = gateway
        self._jobs = jobs
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self.status: GatewayStatus | None = None

    def seen(self, status: GatewayStatus | None) -> None:
        self.status = status

    def refresh(self) -> None:
        """After something was asked of the gateway, what was known of it is old."""
        try:
            self.status = self._gateway.status()
        except (GatewayError, StepError):
            self.status = None

    def slots(self, model: str) -> ModelSlots | None:
        """What the gateway has of a model; None: nothing, or no gateway."""
        models = () if self.status is None else self.status.models
        return next((slots for slots in models if slots.model == model), None)

    def ready_for_candidate(self, model: str, record: ModelRecord) -> bool:
        """Whether the gateway serves what it should, so that another build may be warmed up beside it."""
        if self.status is None or self._jobs.busy(model):
            return False
        slots = self.slots(model)
        if record.active is None:
            return slots is None or slots.active is None
        return slots is not None and slots.active == record.active and not slots.in_probation

    def ask(self, request: Request) -> bool:
        """Whether the gateway did it. A failure is said, and seen again at the next look."""
        try:
            self._gateway.do(request)
        except (GatewayError, StepError) as error:
            log.warning("%s: %s", type(request).__name__, error)
            return False
        finally:
            self.refresh()
        return True

    def reconcile(self, model: str, now: float) -> None:
        """Do the one thing that brings the gateway nearer to the record. `now` is monotonic seconds."""
        if self.status is None or self._jobs.busy(model):
            return
        record, slots = self._book.state.record(model), self.slots(model)
        deployment = record.deployment
        on_trial = (
            deployment.build
            if deployment is not None and deployment.state in (State.WARMING, State.PROBATION)
            else None
        )
        if slots is not None and deployment is not None and deployment.state is State.PROBATION:
            reverted = slots.reverted is not None and slots.reverted.build == on_trial
            if on_trial in (slots.active, slots.candidate) or (reverted and slots.active == record.active):
                return  # the deployment judges it
        if record.active is None:
            if slots is not None and on_trial is None and (slots.active or slots.candidate or slots.previous):
                self.ask(Unload(model=model))
        elif slots is None or slots.active is None:
            self._restore(model, record.active, now)
        elif slots.active != record.active:
            if slots.previous == record.active:
                self.ask(Revert(model=model, reason=Reason.ROLLED_BACK, detail="the newer build is not to serve"))
            else:
                self._restore(model, record.active, now)
        elif slots.in_probation or (slots.previous and any(one.build == slots.previous for one in slots.runners)):
            self.ask(Settle(model=model))
        elif slots.candidate is not None and slots.candidate != on_trial:
            self.ask(Unload(model=model, build=slots.candidate))
        elif record.broken:
            self._count(model, record.active, 0)  # it did start, and control was killed before it noted that

    def load(self, model: str, build: str, *, background: bool, in_place: bool = False) -> None:
        """Verify the build's bytes and let the gateway load it. In the jobs' thread. Raises what went wrong."""
        self._store.verify(build)
        self._gateway.load(
            Load(
                model=model,
                build=build,
                folder=str(self._store.build(build).resolve()),
                background=background,
                in_place=in_place,
                timeout_s=self._settings.load_timeout_s,
            )
        )

    def _restore(self, model: str, build: str, now: float) -> None:
        """The gateway is new, or has lost the model: the active build is loaded again, at normal priority."""
        if now < self._not_before.get(model, 0.0):
            return
        self._not_before[model] = now + _PAUSE_S
        # Counted before it is tried, so that a build that takes the whole device down is not tried for ever.
        try:
            self._count(model, build, self._book.state.record(model).broken.get(build, 0) + 1)
        except OSError as error:
            log.error("%s: the start of %s could not be counted: %s", model, build[:12], error)

        def work() -> None:
            self.load(model, build, background=False)
            self._gateway.do(Switch(model=model, build=build, probation=None))

        log.info("%s: loading the active build %s again", model, build[:12])
        self._jobs.submit(Key(model, RESTORE, build), work)

    def restored(self, finished: Finished, now: float, changed: Changed) -> None:
        """The outcome of a restore. `changed` is told if the model had to fall back."""
        model, build = finished.key.model, finished.key.build
        self.refresh()
        record = self._book.state.record(model)
        if record.active != build:
            return
        if finished.trouble is None:
            self._count(model, build, 0)
            return
        tries = record.broken.get(build, 0)
        log.error("%s: the active build %s does not start (%d): %s", model, build[:12], tries, finished.trouble)
        self._not_before[model] = now + _PAUSE_S * 2
        corrupt = isinstance(finished.trouble, CorruptError)
        if tries < self._settings.max_starts and not corrupt:
            return
        if corrupt:
            reason, event = Reason.DIGEST_MISMATCH, Event.ROTTED
            detail = f"{finished.trouble}; it is fetched again"
        else:
            reason, event = Reason.QUARANTINED, Event.FELL_BACK if record.previous else Event.BROKE
            detail = f"{finished.trouble}; tried {tries} times, not started again until a newer assignment"
        if record.deployment is not None and record.deployment.state is State.ACTIVE:
            new = moved(record, event, now_ms=self._clock(), reason=reason, detail=detail[:1900])
        else:
            new = msgspec.structs.replace(record, active=record.previous, previous=None)
        self._book.change(lambda state: state.with_record(model, new))
        changed(model, new)

    def _count(self, model: str, build: str, tries: int) -> None:
        record = self._book.state.record(model)
        if record.broken.get(build, 0) == tries:
            return
        broken = {build: tries} if tries else {}
        new = msgspec.structs.replace(record, broken=broken)
        self._book.change(lambda state: state.with_record(model, new))
