"""Whether a device may load the build that it has staged: an order's conditions against what the device finds around it. Pure.

>>> here = Surroundings(now_ms=0, mains_power=False, idle_s=60.0)
>>> waits_for(Conditions(mains_power=True), here).reason
<Reason.WAITING_FOR_POWER: 'waiting_for_power'>
>>> waits_for(Conditions(idle_s=30), here) is None
True
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from typing import NamedTuple

from covey_contract.conditions import Conditions, opening
from covey_contract.messages import Assignment
from covey_contract.reasons import Reason


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a device can say of its moment. `clock_set`: the clock is not known to be wrong. `idle_s`: since the last inference request, 0
    while one is being answered; None: the gateway does not tell. `locked_by`: the applications that hold the device's lock."""

    now_ms: int
    clock_set: bool = True
    zone: tzinfo = timezone.utc
    mains_power: bool = True
    idle_s: float | None = None
    locked_by: tuple[str, ...] = ()


class Wait(NamedTuple):
    """The first condition that does not hold. `until_ms`: when it will, where that is known."""

    reason: Reason
    detail: str
    until_ms: int | None = None


def binding(order: Assignment) -> Conditions | None:
    """The conditions that the order is held to: the way back is always free."""
    return None if order.rollback else order.conditions


def waits_for(conditions: Conditions, here: Surroundings) -> Wait | None:
    """None: load it now. What is known beforehand comes first, what changes from one moment to the next last."""
    if not here.clock_set and (conditions.windows or conditions.not_before_ms is not None):
        return Wait(Reason.WAITING_FOR_TIME, "the device's clock is not set, so that it cannot tell what time it is")
    if conditions.not_before_ms is not None and here.now_ms < conditions.not_before_ms:
        return Wait(
            Reason.WAITING_FOR_TIME,
            f"not before {_clock(conditions.not_before_ms, here.zone)}",
            conditions.not_before_ms,
        )
    now = opening(conditions.windows, here.now_ms, here.zone)
    if not now.is_open:
        when = (
            "none opens in the next two weeks"
            if now.changes_ms is None
            else f"opens {_clock(now.changes_ms, here.zone)}"
        )
        return Wait(Reason.WAITING_FOR_WINDOW, f"outside the maintenance windows; {when}", now.changes_ms)
    if conditions.mains_power and not here.mains_power:
        return Wait(Reason.WAITING_FOR_POWER, "the device runs on its battery")
    if conditions.unlocked and here.locked_by:
        return Wait(Reason.LOCKED, f"locked by {', '.join(here.locked_by)}")
    if conditions.idle_s and (here.idle_s is None or here.idle_s < conditions.idle_s):
        return Wait(Reason.WAITING_FOR_IDLE, f"no {conditions.idle_s:g} s without an inference request yet")
    return None


def _clock(unix_ms: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, zone).isoformat(sep=" ", timespec="minutes")
