"""In which time zones a campaign's maintenance windows are open, and when the next one opens. Pure.

Zones are IANA names, as devices report them; the rules for clocks that are set forward and back are those of
`covey_contract.conditions`, which devices follow too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from covey_contract.conditions import opening
from covey_server.core.spec import Maintenance


@dataclass(frozen=True)
class OpenZones:
    """`zones` in which a window is open now; `next_ms`: when one opens in another zone, None if none does in two weeks."""

    zones: frozenset[str]
    next_ms: int | None


def open_zones(maintenance: Maintenance, zones: Iterable[str], now_ms: int) -> OpenZones:
    """Where `maintenance` names a zone itself, its clock counts for all of `zones`."""
    windows = maintenance.as_conditions()
    found, later = set(), []
    for zone in zones:
        seen = opening(windows, now_ms, zone_of(zone if maintenance.of_device else maintenance.zone))
        if seen.is_open:
            found.add(zone)
        elif seen.changes_ms is not None:
            later.append(seen.changes_ms)
    return OpenZones(frozenset(found), min(later, default=None))


def is_known(zone: str) -> bool:
    """Whether that is a time zone known here."""
    return _find(zone) is not None


def zone_of(zone: str) -> tzinfo:
    """UTC where the name is not known."""
    return _find(zone) or UTC


@lru_cache(maxsize=2048)
def _find(zone: str) -> tzinfo | None:
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
