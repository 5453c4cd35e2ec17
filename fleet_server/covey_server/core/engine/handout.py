"""Handing out: which devices get an order now, within pace and windows, and what holds up those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from covey_server.core.engine.decisions import Assign, HandOut
from covey_server.core.engine.seen import Observed, Progress, StageCounts
from covey_server.core.engine.words import at
from covey_server.core.pace import Meter, allowance, rate_of, refill
from covey_server.core.windows import OpenZones, open_zones


@dataclass(frozen=True)
class Handing:
    """`orders` go out now. `to_assign`: that there are more devices in the present stage that only the pace holds up, in words;
    `closed`: that there are those outside their window. Empty: there are none."""

    orders: tuple[Assign, ...]
    to_assign: str = ""
    closed: str = ""


def hand_out(campaign: Progress, observed: Observed, now_ms: int, stages: range, present: int) -> Handing:
    """To devices of `stages`, the earliest first; `present` is the stage whose pace holds and which is asked about."""
    if not campaign.spec.is_paced:
        open_ = [
            stage for stage in stages if observed.stages[stage].planned or sum(observed.stages[stage].ready.values())
        ]
        waiting = observed.stages[present].planned if present in stages else 0
        return Handing(tuple(Assign(stage) for stage in open_), f"{waiting} to be assigned" if waiting else "")
    zones = _open(campaign, [observed.stages[stage] for stage in stages], now_ms)
    limit, meter, held = _limit(campaign, observed, now_ms, present)
    orders: tuple[Assign, ...] = ()
    for stage in stages:
        ready = _ready(observed.stages[stage], zones)
        # One at a time: the meter tells whether a decision still holds, and the next look is a moment away.
        if ready and limit != 0:
            bounds = HandOut(
                None if limit is None else min(limit, ready), None if zones is None else zones.zones, meter
            )
            orders = (Assign(stage, bounds),)
            break
    if present not in stages:
        return Handing(orders)
    counts = observed.stages[present]
    open_now = _ready(counts, zones)
    pace = f" ({', '.join(held)})" if held else ""
    to_assign = f"{open_now} to be assigned{pace}" if open_now else ""
    closed = sum(counts.ready.values()) - open_now
    return Handing(orders, to_assign, _closed(closed, zones) if closed else "")


def _closed(number: int, zones: OpenZones | None) -> str:
    opens = f", the next opens {at(zones.next_ms)}" if zones is not None and zones.next_ms is not None else ""
    return f"{number} outside their maintenance window{opens}"


def _open(campaign: Progress, counts: Sequence[StageCounts], now_ms: int) -> OpenZones | None:
    """None: no window matters."""
    maintenance = campaign.spec.maintenance
    if maintenance is None or maintenance.fetch == "ahead":
        return None
    return open_zones(maintenance, sorted({zone for each in counts for zone in each.ready}), now_ms)


def _ready(counts: StageCounts, zones: OpenZones | None) -> int:
    return sum(number for zone, number in counts.ready.items() if zones is None or zone in zones.zones)


def _limit(campaign: Progress, observed: Observed, now_ms: int, present: int) -> tuple[int | None, Meter, list[str]]:
    """How many orders the pace allows now, the meter as it stands, and the pace in words where it allows none."""
    pace = campaign.spec.pace_of(present)
    if pace is None:
        return None, campaign.meter, []
    succeeded = sum(each.served - min(each.already, each.served) for each in observed.stages)
    in_flight = sum(each.in_flight for each in observed.stages)
    notified = in_flight + sum(each.active - each.already + each.failed + each.retrying for each in observed.stages)
    rate = rate_of(pace, succeeded, notified)
    meter = refill(campaign.meter, rate, now_ms)
    limits: list[int] = []
    held = []
    if (allowed := allowance(meter, rate, observed.build_bytes)) is not None:
        limits.append(allowed)
        if rate.per_minute is not None:
            held.append(f"{rate.per_minute:g} a minute")
        if pace.bandwidth is not None:
            held.append(f"at most {pace.bandwidth}")
    if pace.in_flight is not None:
        limits.append(max(pace.in_flight - in_flight, 0))
        if limits[-1] == 0:
            held.append(f"{in_flight} in flight, at most {pace.in_flight}")
    return (min(limits) if limits else None), meter, held
