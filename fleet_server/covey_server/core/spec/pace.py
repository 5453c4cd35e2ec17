"""The pace's part of a campaign file: how fast orders go out, and how many devices may be at work at once."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.values import ByteRate, Strict

_PerMinute = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]


class Growth(Strict, frozen=True, kw_only=True):
    """Faster with success: times `factor` for every `per` devices that `count` says, up to `at_most` devices a minute.

    `succeeded` are devices that run the version and answer with it; `notified` those that have been given an order.
    """

    per: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    at_most: _PerMinute
    factor: Annotated[float, msgspec.Meta(gt=1, le=10)] = 2.0
    count: Literal["succeeded", "notified"] = "succeeded"


class Pace(Strict, frozen=True, kw_only=True):
    """Each that is given holds. Where any is, orders go only to devices that are connected; the others get theirs when they
    come, also after the campaign is done."""

    per_minute: _PerMinute | None = None
    growth: Growth | None = None
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = (
        None  # devices with an unfinished order, at most
    )
    bandwidth: ByteRate | None = None  # orders go out no faster than builds of that size could be fetched
