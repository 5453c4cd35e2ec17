"""How many orders may go out now: token buckets for devices a minute and bytes a second, kept with the campaign.

A `Meter` is what is remembered between two looks. It also counts the orders handed out so far: a decision to hand out more
names the count that it was made at and no longer holds once that has changed, so that carrying it out twice hands out nothing
twice. Pure; times are Unix times in milliseconds. A clock that is set back fills nothing, one that is set forward fills the
bucket at most once.

>>> meter = refill(Meter(), Rate(per_minute=60.0), now_ms=1000)
>>> meter.devices, allowance(meter, Rate(per_minute=60.0), build_bytes=0)
(5.0, 5)
>>> meter = spend(meter, devices=5, sent_bytes=0)
>>> [allowance(refill(meter, Rate(60.0), now_ms), Rate(60.0), 0) for now_ms in (1000, 2000, 3500)]
[0, 1, 2]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from covey_server.core.spec import Pace

# How much may go at once after a pause: this long's worth, and one device at least.
BURST_S = 5.0


@dataclass(frozen=True)
class Meter:
    """`issued`: orders handed out so far. `devices` and `bytes`: what the buckets held at `at_ms` (None: they are full)."""

    issued: int = 0
    at_ms: int | None = None
    devices: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Rate:
    """What a pace comes to at a moment; None: unlimited."""

    per_minute: float | None = None
    bytes_per_s: int | None = None


def rate_of(pace: Pace, succeeded: int, notified: int) -> Rate:
    """The pace after that many successes, and that many orders handed out."""
    per_minute = pace.per_minute
    if per_minute is not None and pace.growth is not None:
        growth = pace.growth
        steps = (succeeded if growth.count == "succeeded" else notified) // growth.per
        # A power of many steps is no number; the limit is reached long before.
        needed = math.log(growth.at_most / per_minute, growth.factor)
        per_minute = growth.at_most if steps >= needed else per_minute * growth.factor**steps
    return Rate(per_minute, pace.bandwidth.per_s if pace.bandwidth is not None else None)


def refill(meter: Meter, rate: Rate, now_ms: int) -> Meter:
    """The meter as it stands at `now_ms`."""
    devices, sent = _burst(rate)
    if meter.at_ms is None:
        return replace(meter, at_ms=now_ms, devices=devices, bytes=sent)
    passed_s = max(now_ms - meter.at_ms, 0) / 1000
    return replace(
        meter,
        at_ms=now_ms,
        devices=min(meter.devices + passed_s * (rate.per_minute or 0.0) / 60, devices),
        bytes=min(meter.bytes + passed_s * (rate.bytes_per_s or 0), sent),
    )


def allowance(meter: Meter, rate: Rate, build_bytes: int) -> int | None:
    """How many orders for a build of that size may go out at once; None: any number. One build may overdraw the bytes."""
    limits = []
    if rate.per_minute is not None:
        limits.append(math.floor(meter.devices + 1e-9))
    if rate.bytes_per_s is not None:
        limits.append(0 if meter.bytes <= 0 else max(math.floor(meter.bytes / max(build_bytes, 1)), 1))
    return max(min(limits), 0) if limits else None


def spend(meter: Meter, devices: int, sent_bytes: int) -> Meter:
    """The meter once that many orders, for builds of so many bytes in all, have been handed out."""
    return replace(
        meter,
        issued=meter.issued + devices,
        devices=meter.devices - devices,
        bytes=meter.bytes - sent_bytes,
    )


def _burst(rate: Rate) -> tuple[float, float]:
    """What the buckets hold when they are full."""
    devices = max((rate.per_minute or 0.0) / 60 * BURST_S, 1.0)
    return devices, (rate.bytes_per_s or 0) * BURST_S
