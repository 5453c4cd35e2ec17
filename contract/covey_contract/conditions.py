"""When a device may change what serves: the conditions of an order, and the arithmetic of its maintenance windows. Pure.

Fetching and verifying never wait; a device that may not switch yet says so in the state `staged`, with one of `reasons.WAITING`.

A window recurs by the device's own wall clock. It opens once on each of its days, at the first moment that the clock shows `start`,
and closes at the first moment after that at which it shows `end`; so it neither opens twice nor flaps where clocks are set back.
A time that is skipped where they are set forward is read by the offset from before, an hour later on the clock; a window that begins
in the skipped hour and ends soon after it may have nothing left, and does not open on that day.

>>> from zoneinfo import ZoneInfo
>>> nights = MaintenanceWindow(start="22:00", end="05:30", days=(Day.FRI,))
>>> friday = datetime(2026, 3, 6, 23, 0, tzinfo=ZoneInfo("Europe/Berlin"))
>>> opening((nights,), int(friday.timestamp() * 1000), ZoneInfo("Europe/Berlin")).is_open
True
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Annotated, NamedTuple

import msgspec

from covey_contract.strenum import StrEnum

MAX_WINDOWS = 32
# A window that opens on one day a week can miss one week to a clock that is set forward; one on the 31st may have to wait for
# two months.
_LOOK_AHEAD_DAYS = 15
_LOOK_AHEAD_MONTHS_DAYS = 93

MonthDay = Annotated[int, msgspec.Meta(ge=1, le=31)]
ClockTime = Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class Day(StrEnum):
    """In the order of `date.weekday()`."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


DAYS = tuple(Day)


class MaintenanceWindow(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"start": "from", "end": "to"}
):
    """`{"days": ["sat"], "from": "22:00", "to": "05:00"}`: a window whose end is not after its start closes on the next day.
    `days` are those on which it opens; of them, where `month_days` are given, those that are one of these of their month."""

    start: ClockTime
    end: ClockTime
    days: tuple[Day, ...] = DAYS
    month_days: tuple[MonthDay, ...] = ()

    def __post_init__(self) -> None:
        if not self.days or len(set(self.days)) != len(self.days):
            raise ValueError("a maintenance window names one to seven different days")
        if len(set(self.month_days)) != len(self.month_days):
            raise ValueError("a maintenance window names a day of the month twice")


class Conditions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All must hold before the device loads the build. What is not named need not hold."""

    not_before_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None = None
    windows: tuple[MaintenanceWindow, ...] = ()  # inside any of them
    mains_power: bool = False
    unlocked: bool = False  # no application holds the device's lock
    idle_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0  # no inference request for so long

    def __post_init__(self) -> None:
        if len(self.windows) > MAX_WINDOWS:
            raise ValueError(f"{len(self.windows)} maintenance windows; at most {MAX_WINDOWS}")


class Opening(NamedTuple):
    """`changes_ms`: when an open window closes or the next one opens; None if none opens in the next two weeks, or three months
    where it opens on days of the month."""

    is_open: bool
    changes_ms: int | None


def opening(windows: tuple[MaintenanceWindow, ...], now_ms: int, zone: tzinfo) -> Opening:
    """Whether any window is open at `now_ms` where clocks show the time of `zone`. No windows at all: open for ever."""
    if not windows:
        return Opening(True, None)
    spans = sorted(span for window in windows for span in _spans(window, now_ms, zone))
    closes = None
    for opens_ms, closes_ms in spans:
        if opens_ms <= (closes or now_ms) < closes_ms:
            closes = closes_ms  # windows that touch or overlap are one
    if closes is not None:
        return Opening(True, closes)
    return Opening(False, min((opens_ms for opens_ms, _ in spans if opens_ms > now_ms), default=None))


def _spans(window: MaintenanceWindow, now_ms: int, zone: tzinfo) -> Iterator[tuple[int, int]]:
    """The window's openings from yesterday on, as [from, to) in Unix milliseconds; those of no length are left out."""
    today = datetime.fromtimestamp(now_ms / 1000, zone).date()
    next_day = timedelta(days=1 if window.end <= window.start else 0)
    for ahead in range(-1, _LOOK_AHEAD_MONTHS_DAYS if window.month_days else _LOOK_AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        if DAYS[day.weekday()] not in window.days or (window.month_days and day.day not in window.month_days):
            continue
        opens, closes = _moment(day, window.start, zone), _moment(day + next_day, window.end, zone)
        if opens < closes:
            yield opens, closes


def _moment(day: date, clock: str, zone: tzinfo) -> int:
    """In Unix milliseconds. `fold=0`, the default, is the earlier of two moments, and the offset from before in a gap (PEP 495)."""
    return int(datetime.combine(day, time.fromisoformat(clock), tzinfo=zone).timestamp() * 1000)
