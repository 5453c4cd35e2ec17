"""A device's part in a campaign, brought up to what the device has said. Pure: the part and what is seen of the device -> the part.

It never looks at other devices, so that a change of one device costs one step, whatever the size of the campaign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from covey_contract.lifecycle import BAD, State
from covey_contract.reasons import WAITING, Reason
from covey_server.core.engine import DeviceState

ISSUED = "issued"  # the state of an order that no device has said a word of
ROLLOUT: Final = "rollout"
ROLLBACK: Final = "rollback"
SUPERSEDED_DETAIL = "a later order from outside this campaign counts for it"
NEVER_SEEN_MS = 0  # `off_since_ms` of a device that was never heard of, or is revoked

_HAS_ORDER = frozenset({DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED, DeviceState.RETRYING})
_ORDERED = _HAS_ORDER | {DeviceState.ROLLING_BACK}
_BAD = frozenset(str(state) for state in BAD)
_BACK = frozenset({DeviceState.ROLLED_BACK, DeviceState.RESTORED_LOCALLY})
_WAITING = frozenset(str(reason) for reason in WAITING)


@dataclass(frozen=True)
class Part:
    """The columns of `campaign_devices` that follow from what devices do."""

    state: DeviceState
    heard: bool = False
    waiting: bool = False  # it holds the build, and a condition of the order does not hold yet
    served: bool = False
    begun_ms: int | None = None  # when it said its first word of its order, or what it waited for had come
    off_since_ms: int | None = None
    reason: str = str(Reason.NONE)
    detail: str = ""
    active_ms: int | None = None
    restored_ms: int | None = None
    drifted_ms: int | None = None  # when it was found to run something else than the campaign left it on


@dataclass(frozen=True)
class OrderSeen:
    """The part's own order."""

    kind: str
    state: str  # a lifecycle `State`, "issued" or "superseded"
    reason: str
    detail: str
    updated_ms: int


@dataclass(frozen=True)
class Seen:
    """What the database holds of the device. Digests are those of builds."""

    order: OrderSeen | None
    assignment: str | None  # of the part
    wanted: str | None  # the assignment that counts for the device and model
    answers: int  # requests that the wanted build is to answer before it counts as served
    build: str | None  # digest of what the campaign gives
    previous: str | None  # digest of what the device goes back to; None: to nothing
    reported: bool = False  # the device has told of the model; else what follows says nothing
    active: str | None = None  # what it serves …
    answered: int = 0  # … and how many requests that has answered
    candidate: str | None = None
    told_of: str | None = None  # the assignment that the device last spoke of
    told_ms: int = 0  # when it last did
    off_since_ms: int | None = None


def step(part: Part, seen: Seen) -> Part:
    """The part as it is now. A step that changes nothing returns an equal part."""
    part = _moved_on(part, seen)
    if not _has_drifted(part, seen):
        return replace(part, drifted_ms=None)
    return part if part.drifted_ms is not None else replace(part, drifted_ms=seen.told_ms)


def _moved_on(part: Part, seen: Seen) -> Part:
    order = seen.order
    heard = order is not None and order.state != ISSUED
    waited = part.waiting
    part = replace(part, heard=heard, waiting=_waits(order), off_since_ms=seen.off_since_ms, served=_has_served(seen))
    # Time to work on an order begins with the first word on it, and again when what it waited for has come.
    if heard and order is not None and (part.begun_ms is None or (waited and not part.waiting)):
        part = replace(part, begun_ms=order.updated_ms)
    if part.state in _ORDERED and seen.assignment and seen.wanted and seen.wanted != seen.assignment:
        return replace(
            part,
            state=DeviceState.SKIPPED,
            reason=str(Reason.SUPERSEDED),
            detail=SUPERSEDED_DETAIL,
        )
    if order is None:
        return part
    if order.kind == ROLLOUT:
        # One that was given up, or is to be tried again, may come through after all.
        if part.state in _HAS_ORDER - {DeviceState.ACTIVE} and order.state == State.ACTIVE:
            part = replace(_told(part, order), state=DeviceState.ACTIVE, active_ms=order.updated_ms)
        if part.state in {DeviceState.ASSIGNED, DeviceState.ACTIVE} and order.state in _BAD:
            part = replace(_told(part, order), state=DeviceState.FAILED)
    elif order.kind == ROLLBACK:
        if part.state in {DeviceState.ROLLING_BACK, DeviceState.FAILED} and _has_gone_back(order, seen):
            part = replace(_told(part, order), state=DeviceState.ROLLED_BACK, restored_ms=order.updated_ms)
        if part.state is DeviceState.ROLLING_BACK and order.state in _BAD:
            part = replace(_told(part, order), state=DeviceState.FAILED)
    return part


def _has_drifted(part: Part, seen: Seen) -> bool:
    """Its order still counts and was followed, it has nothing else in hand, and it runs something else."""
    if not seen.reported or seen.candidate is not None or seen.assignment is None or seen.wanted != seen.assignment:
        return False
    if part.state is DeviceState.ACTIVE:
        return seen.active != seen.build
    return part.state in _BACK and (seen.active or "") != (seen.previous or "")


def serves_previous(seen: Seen) -> bool:
    """The device says that it serves the build from before, and has no other in hand."""
    return seen.reported and seen.candidate is None and (seen.active or "") == (seen.previous or "")


def _waits(order: OrderSeen | None) -> bool:
    return order is not None and order.state == State.STAGED and order.reason in _WAITING


def _has_served(seen: Seen) -> bool:
    return seen.build is not None and seen.active == seen.build and seen.answered >= seen.answers


def _has_gone_back(order: OrderSeen, seen: Seen) -> bool:
    """The order to go back was followed; or there was nothing to follow, since the device serves its previous build (or, where
    it had none, nothing) and knows of the order."""
    if order.state in {State.ACTIVE, State.REMOVED}:
        return True
    knows = seen.told_of is not None and seen.told_of == seen.assignment
    return serves_previous(seen) and (order.state in _BAD or knows)


def _told(part: Part, order: OrderSeen) -> Part:
    return replace(part, reason=order.reason, detail=order.detail)
