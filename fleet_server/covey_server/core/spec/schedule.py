"""The times in a campaign file: when it starts and ends, and in which windows of the devices' own clocks it works."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_contract.conditions import MAX_WINDOWS, ClockTime, Day, MaintenanceWindow, MonthDay
from covey_server.core.spec.values import Moment, Strict

AtEnd = Literal["pause", "abort", "rollback"]
ZoneName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}\Z")]


class Schedule(Strict, frozen=True, kw_only=True):
    """`start`: a campaign that is started earlier waits for it. `end`: if it still runs then, `at_end` is what happens: pause
    (those under way finish), abort (devices keep what they have), or rollback."""

    start: Moment | None = None
    end: Moment | None = None
    at_end: AtEnd = "pause"


class Window(Strict, frozen=True, kw_only=True, rename={"opens": "from", "closes": "to"}):
    """`{days: [sat], from: "22:00", to: "05:00"}`: a window that closes no later than it opens closes on the next day. `days`
    are those on which it opens; of them, where `month_days` are given, those that are one of these of their month."""

    opens: ClockTime
    closes: ClockTime
    days: Annotated[tuple[Day, ...], msgspec.Meta(min_length=1, max_length=7)] = tuple(Day)
    month_days: Annotated[tuple[MonthDay, ...], msgspec.Meta(max_length=31)] = ()


class Maintenance(Strict, frozen=True, kw_only=True):
    """Devices change what serves only inside a window, by their own clocks (`zone: device`) or by those of a named zone.

    `fetch: inside`: orders go out inside windows only, so that nothing is fetched outside. `ahead`: they go out at any time,
    the device fetches, and waits for its window with the build in its hands.
    """

    windows: Annotated[tuple[Window, ...], msgspec.Meta(min_length=1, max_length=MAX_WINDOWS)]
    zone: ZoneName = "device"
    fetch: Literal["inside", "ahead"] = "inside"

    @property
    def of_device(self) -> bool:
        return self.zone == "device"

    def as_conditions(self) -> tuple[MaintenanceWindow, ...]:
        """As the contract has them."""
        return tuple(
            MaintenanceWindow(start=one.opens, end=one.closes, days=one.days, month_days=one.month_days)
            for one in self.windows
        )
