"""What a campaign file says of devices one by one: their conditions, what counts as served, retries, quarantine; and what
follows a breach."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.values import Duration, Moment, Strict, span

MAX_RETRIES = 10

BreachAction = Literal["pause", "halt", "rollback"]
Failure = Literal["refused", "failed", "rolled_back", "timed_out"]
Conflict = Literal["refuse", "queue"]


class Conditions(Strict, frozen=True, kw_only=True):
    """When a device may change what serves, by its own judgement; it fetches and verifies before. See
    `covey_contract.conditions.Conditions`."""

    not_before: Moment | None = None
    mains_power: bool = False
    idle: Duration = span(0)  # no inference request for so long
    unlocked: bool = False  # no application holds the device's lock


class Served(Strict, frozen=True, kw_only=True):
    """A device is done when it reports the build as running and has answered so many `requests` with it.

    `of: busy` asks that of devices that answered requests with their build before; `all` of every device. One that has not
    answered `within` that time no longer holds up its stage, and does not count as reached.
    """

    requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 1
    of: Literal["busy", "all"] = "busy"
    within: Duration = span(600_000)


class Retry(Strict, frozen=True, kw_only=True):
    """A device that failed for one of these `causes` gets another order, up to `times` times: `after` that long, and `factor`
    times as long each further time. `then`: what becomes of one that failed every time: it counts as failed, or the campaign
    is paused for a person to look at it."""

    times: Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)] = 0
    after: Duration = span(60_000)
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    causes: Annotated[tuple[Failure, ...], msgspec.Meta(min_length=1, max_length=4)] = ("failed", "timed_out")
    then: Literal["fail", "person"] = "fail"


class Quarantine(Strict, frozen=True, kw_only=True):
    """A device that failed in the last so many campaigns of the model that reached it is left out of this one, until an order
    that a person gives it succeeds. `failures: 0`: nobody is."""

    failures: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3


class OnBreach(Strict, frozen=True, kw_only=True):
    """What a breached gate leads to. `scope`, of a rollback: every device of the campaign, or those of the breached stage,
    after which the campaign stands halted."""

    action: BreachAction = "rollback"
    scope: Literal["all", "stage"] = "all"
