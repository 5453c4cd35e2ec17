"""In which zones maintenance windows are open, through the week, the month and the nights on which clocks are set."""

from __future__ import annotations

import pytest

from covey_server.core.spec import Maintenance, Window, parse_moment
from covey_server.core.windows import is_known, open_zones, zone_of


def at(text: str) -> int:
    return parse_moment(text).ms


def nights(**changes: object) -> Maintenance:
    return Maintenance(windows=(Window(opens="22:00", closes="05:00", **changes),))  # type: ignore[arg-type]  # fields of a window


def test_each_zone_by_its_own_clock_and_the_next_to_open() -> None:
    seen = open_zones(nights(), ["UTC", "Asia/Tokyo", "Europe/Berlin"], at("2027-01-15T13:00:00Z"))
    assert seen.zones == {"Asia/Tokyo"}
    assert seen.next_ms == at("2027-01-15T21:00:00Z")
    everywhere = Maintenance(windows=nights().windows, zone="Asia/Tokyo")
    assert open_zones(everywhere, ["UTC", "Europe/Berlin"], at("2027-01-15T13:00:00Z")).zones == {
        "UTC",
        "Europe/Berlin",
    }


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2027-03-28T00:59:00Z", False),  # 01:59 in Berlin; at 02:00 clocks go to 03:00
        ("2027-03-28T01:30:00Z", True),  # 03:30
        ("2027-03-28T02:01:00Z", False),
        ("2027-10-31T00:30:00Z", True),  # 02:30, the first time
        ("2027-10-31T01:45:00Z", True),  # 02:45, the second time
        ("2027-10-31T03:01:00Z", False),
    ],
)
def test_windows_are_those_of_the_wall_clock_when_it_is_set(moment: str, is_open: bool) -> None:
    early = Maintenance(windows=(Window(opens="02:00", closes="04:00"),))
    assert bool(open_zones(early, ["Europe/Berlin"], at(moment)).zones) is is_open


def test_windows_recur_on_days_of_the_week_and_of_the_month() -> None:
    friday = nights(days=("fri",))
    assert open_zones(friday, ["UTC"], at("2027-01-16T04:00:00Z")).zones == {"UTC"}  # Saturday morning
    assert open_zones(friday, ["UTC"], at("2027-01-16T23:00:00Z")).zones == frozenset()
    first = nights(month_days=(1, 15))
    assert open_zones(first, ["UTC"], at("2027-01-15T23:00:00Z")).zones == {"UTC"}
    assert open_zones(first, ["UTC"], at("2027-01-17T23:00:00Z")).next_ms == at("2027-02-01T22:00:00Z")


def test_a_zone_that_nobody_knows_is_taken_as_utc() -> None:
    assert not is_known("CEST/../..")
    assert is_known("Asia/Tokyo")
    assert zone_of("Mars/Olympus") is zone_of("Moon/Tycho")
    assert open_zones(nights(), ["Mars/Olympus"], at("2027-01-15T23:00:00Z")).zones == {"Mars/Olympus"}
