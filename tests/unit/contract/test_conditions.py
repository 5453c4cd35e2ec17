"""Maintenance windows by the device's own clock, and through the nights on which clocks are set."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_contract.conditions import DAYS, Conditions, Day, MaintenanceWindow, opening
from covey_contract.messages import Assignment
from covey_contract.wire import decode, encode

BERLIN = ZoneInfo("Europe/Berlin")  # clocks forward on 29 March 2026 at 02:00, back on 25 October 2026 at 03:00
KOLKATA = ZoneInfo("Asia/Kolkata")
MINUTE = 60_000
HOUR = 60 * MINUTE


def ms(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp() * 1000)


def window(start: str, end: str, *days: Day) -> MaintenanceWindow:
    return MaintenanceWindow(start=start, end=end, days=days or DAYS)


@pytest.mark.parametrize(
    ("one", "now", "is_open", "changes"),
    [
        # Within one day; the start belongs to it, the end does not.
        (window("09:00", "17:00"), "2026-03-04T08:59:59", False, "2026-03-04T09:00"),
        (window("09:00", "17:00"), "2026-03-04T09:00", True, "2026-03-04T17:00"),
        (window("09:00", "17:00"), "2026-03-04T17:00", False, "2026-03-05T09:00"),
        # Over midnight: the days are those on which it opens.
        (window("22:00", "05:30", Day.FRI), "2026-03-06T23:00", True, "2026-03-07T05:30"),
        (window("22:00", "05:30", Day.FRI), "2026-03-07T05:29", True, "2026-03-07T05:30"),
        (window("22:00", "05:30", Day.FRI), "2026-03-07T22:30", False, "2026-03-13T22:00"),
        # A whole day.
        (window("00:00", "00:00", Day.SUN), "2026-03-08T12:00", True, "2026-03-09T00:00"),
        (window("00:00", "00:00", Day.SUN), "2026-03-09T00:00", False, "2026-03-15T00:00"),
    ],
)
def test_windows(one: MaintenanceWindow, now: str, is_open: bool, changes: str) -> None:
    assert opening((one,), ms(now), BERLIN) == (is_open, ms(changes))


def test_windows_that_touch_or_overlap_are_one() -> None:
    both = (window("22:00", "00:00", Day.MON), window("00:00", "04:00", Day.TUE), window("03:00", "06:00", Day.TUE))
    assert opening(both, ms("2026-03-02T23:00"), BERLIN) == (True, ms("2026-03-03T06:00"))


def test_a_window_is_open_by_the_devices_own_clock() -> None:
    now = ms("2026-03-04T22:30", KOLKATA)
    assert opening((window("22:00", "23:00"),), now, KOLKATA).is_open
    assert not opening((window("22:00", "23:00"),), now, BERLIN).is_open


def test_no_window_is_always_open() -> None:
    assert opening((), 0, BERLIN) == (True, None)


# --- nights on which clocks are set -------------------------------------------------------------------------------


def test_a_night_with_a_missing_hour_is_an_hour_shorter() -> None:
    found = opening((window("22:00", "05:00"),), ms("2026-03-28T22:00"), BERLIN)
    assert found == (True, ms("2026-03-28T22:00") + 6 * HOUR)


def test_a_night_with_an_hour_twice_is_an_hour_longer() -> None:
    found = opening((window("22:00", "05:00"),), ms("2026-10-24T22:00"), BERLIN)
    assert found == (True, ms("2026-10-24T22:00") + 8 * HOUR)


def test_a_window_opens_once_where_its_hour_comes_twice() -> None:
    one = (window("02:15", "02:45"),)
    assert opening(one, ms("2026-10-25T02:30", fold=0), BERLIN) == (True, ms("2026-10-25T02:45", fold=0))
    assert opening(one, ms("2026-10-25T02:30", fold=1), BERLIN) == (False, ms("2026-10-26T02:15"))


def test_a_window_does_not_flap_where_clocks_are_set_back() -> None:
    one = (window("02:30", "04:00"),)
    for minutes in range(0, 150, 5):
        now = ms("2026-10-25T02:30", fold=0) + minutes * MINUTE
        assert opening(one, now, BERLIN) == (True, ms("2026-10-25T04:00"))


def test_a_start_that_is_skipped_comes_an_hour_later_by_the_clock() -> None:
    one = (window("02:30", "04:00"),)
    assert opening(one, ms("2026-03-29T01:59"), BERLIN) == (False, ms("2026-03-29T03:30"))


def test_a_weekly_window_that_lies_in_the_skipped_hour_opens_a_week_later() -> None:
    one = (window("02:00", "03:00", Day.SUN),)
    assert opening(one, ms("2026-03-29T01:00"), BERLIN) == (False, ms("2026-04-05T02:00"))


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 1439),
    end=st.integers(0, 1439),
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    minute=st.integers(0, 400 * 1440),
    zone=st.sampled_from(
        [BERLIN, KOLKATA, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")]
    ),
)
def test_what_is_said_of_the_next_change_comes_true(
    start: int, end: int, days: set[Day], minute: int, zone: Any
) -> None:
    clock = [f"{value // 60:02}:{value % 60:02}" for value in (start, end)]
    windows = (MaintenanceWindow(start=clock[0], end=clock[1], days=tuple(days)),)
    now = ms("2026-01-01T00:00") + minute * MINUTE
    found = opening(windows, now, zone)
    assert found.changes_ms is not None
    assert found.changes_ms > now
    assert opening(windows, found.changes_ms - 1, zone).is_open is found.is_open
    after = opening(windows, found.changes_ms, zone)
    whole_days = found.is_open and found.changes_ms - now > timedelta(days=7).total_seconds() * 1000
    assert after.is_open is not found.is_open or whole_days


# --- on the wire --------------------------------------------------------------------------------------------------


def test_windows_may_open_on_days_of_the_month() -> None:
    first = MaintenanceWindow(start="22:00", end="05:00", days=(Day.SAT, Day.SUN), month_days=(1, 31))
    assert opening((first,), ms("2026-01-31T23:00"), BERLIN) == (True, ms("2026-02-01T05:00"))  # a Saturday, the 31st
    assert opening((first,), ms("2026-02-01T23:00"), BERLIN).is_open  # a Sunday, the 1st
    assert opening((first,), ms("2026-02-07T23:00"), BERLIN) == (False, ms("2026-03-01T22:00"))
    assert opening((first,), ms("2026-03-02T06:00"), BERLIN) == (False, ms("2026-05-31T22:00"))


ASSIGNMENT = {
    "id": "a1",
    "device": "press-7",
    "counter": 3,
    "issued_ms": 1,
    "expires_ms": 2,
    "model": "digits",
    "version": "1.0",
    "build": "ab" * 32,
}


def test_conditions_stand_in_an_assignment_by_the_campaign_files_words() -> None:
    wanted = {"windows": [{"days": ["sat", "sun"], "from": "22:00", "to": "05:00"}], "mains_power": True, "idle_s": 30}
    order = decode(Assignment, msgspec.json.encode({**ASSIGNMENT, "conditions": wanted}))
    assert order.conditions == Conditions(
        windows=(window("22:00", "05:00", Day.SAT, Day.SUN),), mains_power=True, idle_s=30
    )
    assert decode(Assignment, encode(order)) == order


def test_an_order_without_conditions_is_the_order_of_before() -> None:
    order = decode(Assignment, msgspec.json.encode(ASSIGNMENT))
    assert order.conditions is None
    assert b"conditions" not in encode(order)


@pytest.mark.parametrize(
    "bad",
    [
        {"windows": [{"from": "24:00", "to": "05:00"}]},
        {"windows": [{"from": "9:00", "to": "17:00"}]},
        {"windows": [{"from": "09:00"}]},
        {"windows": [{"from": "09:00", "to": "17:00", "days": []}]},
        {"windows": [{"from": "09:00", "to": "17:00", "days": ["mon", "mon"]}]},
        {"windows": [{"from": "09:00", "to": "17:00", "days": ["monday"]}]},
        {"windows": [{"from": "09:00", "to": "17:00", "month_days": [0]}]},
        {"windows": [{"from": "09:00", "to": "17:00", "month_days": [1, 1]}]},
        {"windows": [{"from": "09:00", "to": "17:00"}] * 33},
        {"idle_s": -1},
        {"idle_s": 86_401},
        {"not_before_ms": -1},
        {"mains_power": "yes"},
    ],
)
def test_conditions_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Conditions)
