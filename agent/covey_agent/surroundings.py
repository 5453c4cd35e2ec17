"""What an order's conditions are held against, read where it is to be found: the kernel, the time zone, the gateway's status."""

from __future__ import annotations

from covey_agent.core.conditions import Surroundings
from covey_agent.gateway.control_api import GatewayStatus
from covey_agent.power import on_mains
from covey_agent.timezone import local_zone

# A server's clock may be a little ahead of this one.
_CLOCK_TOLERANCE_MS = 300_000


def look_around(clock_ms: int, floor_ms: int, gateway: GatewayStatus | None) -> Surroundings:
    """`clock_ms` is what the clock says, `floor_ms` the newest time that a director has signed: it is later than that."""
    return Surroundings(
        now_ms=max(clock_ms, floor_ms),
        clock_set=clock_ms >= floor_ms - _CLOCK_TOLERANCE_MS,
        zone=local_zone(),
        mains_power=on_mains(),
        idle_s=gateway.idle_s if gateway is not None else None,
        locked_by=gateway.locked_by if gateway is not None else (),
    )
