"""What the agent knows of its deployments, as plain values. `book.py` keeps it on disk.

Invariants: `counter` and `time_floor_ms` never decrease; `active` of a model is a build that was verified and has passed its
probation, and what serves while a newer one is on its way.
"""

from __future__ import annotations

import msgspec

from covey_agent.core.lifecycle import Event, after, may_retry
from covey_contract.lifecycle import State
from covey_contract.messages import Action, Assignment, ModelStatus
from covey_contract.reasons import WAITING, Reason


class Deployment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest order for a model, and how far it has come."""

    order: Assignment
    state: State = State.ASSIGNED
    since_ms: int = 0
    reason: Reason = Reason.NONE
    detail: str = ""
    starts: int = 0  # how often its build was started under this order
    retries: int = 0
    bytes_fetched: int = 0
    waits_until_ms: int | None = None  # of a wait whose end is known
    release: int = 0  # the counter of its build's release; 0: no repository vouched for it

    @property
    def build(self) -> str:
        return self.order.build

    @property
    def waiting(self) -> bool:
        """Whether a condition of the order holds it up; that may take weeks."""
        return self.state is State.STAGED and self.reason in WAITING


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on this device: builds by their digests."""

    active: str | None = None
    previous: str | None = None
    deployment: Deployment | None = None
    broken: dict[str, int] = {}  # build -> starts in a row that failed
    pinned: str | None = None  # why no orders are followed; None: they are
    release_floor: int = 0  # the highest release counter that passed its probation here; never decreases


class AgentState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of it. `generation` grows with every write and tells the newer of two copies."""

    generation: int = 0
    counter: int = 0
    time_floor_ms: int = 0
    models: dict[str, ModelRecord] = {}
    spool_start_ms: int = 0  # where the newest spool's numbers begin
    clean_stop: bool = False
    kernel_boot: str = ""

    def record(self, model: str) -> ModelRecord:
        return self.models.get(model, ModelRecord())

    def with_record(self, model: str, record: ModelRecord) -> AgentState:
        return msgspec.structs.replace(self, models={**self.models, model: record})


def moved(
    record: ModelRecord,
    event: Event,
    *,
    now_ms: int,
    reason: Reason = Reason.NONE,
    detail: str = "",
    until_ms: int | None = None,
) -> ModelRecord:
    """The record after an event; the slots change together with the state."""
    deployment = record.deployment
    assert deployment is not None, "only a model with a deployment has events"  # noqa: S101
    state = after(deployment.state, event)
    starts = deployment.starts + (event is Event.WARM)
    retries = deployment.retries + (event is Event.RETRY)
    record = msgspec.structs.replace(
        record,
        deployment=msgspec.structs.replace(
            deployment,
            state=state,
            since_ms=now_ms,
            reason=reason,
            detail=detail,
            starts=starts,
            retries=retries,
            waits_until_ms=until_ms,
        ),
    )
    if event is Event.PASSED:
        previous = record.active if record.active != deployment.build else record.previous
        floor = max(record.release_floor, deployment.release)
        return msgspec.structs.replace(
            record, active=deployment.build, previous=previous, broken={}, release_floor=floor
        )
    if event in (Event.FELL_BACK, Event.ROTTED):
        return msgspec.structs.replace(record, active=record.previous, previous=None)
    if event is Event.BROKE or event is Event.REMOVE:
        return msgspec.structs.replace(record, active=None, previous=None)
    return record


def protected(state: AgentState) -> frozenset[str]:
    """The builds that garbage collection must never take: active, previous and candidate of every model."""
    builds: set[str] = set()
    for record in state.models.values():
        builds.update(build for build in (record.active, record.previous) if build)
        if (candidate := candidate_of(record)) is not None:
            builds.add(candidate)
    return frozenset(builds)


def candidate_of(record: ModelRecord) -> str | None:
    """The build that is on its way, or may soon be again."""
    deployment = record.deployment
    if deployment is None or deployment.order.action is Action.REMOVE:
        return None
    if deployment.state.final and not may_retry(deployment.state, deployment.reason):
        return None
    return deployment.build


def status_of(model: str, record: ModelRecord) -> ModelStatus:
    """As the device's hello tells it."""
    deployment = record.deployment
    slots = ModelStatus(model=model, active=record.active, previous=record.previous, candidate=candidate_of(record))
    if deployment is None:
        return slots
    return msgspec.structs.replace(
        slots,
        assignment=deployment.order.id,
        counter=deployment.order.counter,
        state=deployment.state,
        reason=deployment.reason,
        detail=deployment.detail[:2000],
    )
