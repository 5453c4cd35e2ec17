"""What holds an order up, as a table; and where the device reads it: power supplies, time zone."""

from __future__ import annotations

import doctest
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from covey_agent import power, surroundings, timezone
from covey_agent.core import conditions
from covey_agent.core.conditions import Surroundings, waits_for
from covey_agent.power import on_mains
from covey_agent.timezone import local_zone, zone_name
from covey_contract.conditions import Conditions, MaintenanceWindow
from covey_contract.reasons import WAITING, Reason

UTC = ZoneInfo("UTC")
NOON = int(datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp() * 1000)
NIGHTS = (MaintenanceWindow(start="22:00", end="05:00"),)
EVERYTHING = Conditions(not_before_ms=NOON, windows=NIGHTS, mains_power=True, unlocked=True, idle_s=30)


@pytest.mark.parametrize(
    ("wanted", "here", "reason"),
    [
        (Conditions(), {}, None),
        (Conditions(not_before_ms=NOON + 1), {}, Reason.WAITING_FOR_TIME),
        (Conditions(not_before_ms=NOON), {}, None),
        (Conditions(windows=NIGHTS), {}, Reason.WAITING_FOR_WINDOW),
        (Conditions(windows=NIGHTS), {"zone": ZoneInfo("Pacific/Auckland")}, None),  # 01:00 there
        (Conditions(mains_power=True), {"mains_power": False}, Reason.WAITING_FOR_POWER),
        (Conditions(mains_power=True), {}, None),
        (Conditions(), {"mains_power": False, "locked_by": ("a",), "idle_s": 0.0}, None),
        (Conditions(unlocked=True), {"locked_by": ("vision",)}, Reason.LOCKED),
        (Conditions(unlocked=True), {}, None),
        (Conditions(idle_s=30), {"idle_s": 29.9}, Reason.WAITING_FOR_IDLE),
        (Conditions(idle_s=30), {"idle_s": 30.0}, None),
        (Conditions(idle_s=30), {"idle_s": None}, Reason.WAITING_FOR_IDLE),  # the gateway does not tell
        # A clock that is known to be wrong tells no window; it says nothing about the rest.
        (Conditions(windows=NIGHTS), {"clock_set": False}, Reason.WAITING_FOR_TIME),
        (Conditions(not_before_ms=0), {"clock_set": False}, Reason.WAITING_FOR_TIME),
        (Conditions(mains_power=True), {"clock_set": False}, None),
        # Of several, the first is told.
        (EVERYTHING, {"now_ms": NOON - 1, "mains_power": False}, Reason.WAITING_FOR_TIME),
        (EVERYTHING, {"mains_power": False}, Reason.WAITING_FOR_WINDOW),
        (EVERYTHING, {"now_ms": NOON + 11 * 3_600_000, "mains_power": False}, Reason.WAITING_FOR_POWER),
        (EVERYTHING, {"now_ms": NOON + 11 * 3_600_000, "locked_by": ("a",)}, Reason.LOCKED),
        (EVERYTHING, {"now_ms": NOON + 11 * 3_600_000, "idle_s": 1.0}, Reason.WAITING_FOR_IDLE),
        (EVERYTHING, {"now_ms": NOON + 11 * 3_600_000, "idle_s": 31.0}, None),
    ],
)
def test_what_holds_an_order_up(wanted: Conditions, here: dict[str, Any], reason: Reason | None) -> None:
    wait = waits_for(wanted, Surroundings(**{"now_ms": NOON, "zone": UTC, **here}))
    assert (wait.reason if wait else None) is reason
    assert reason is None or reason in WAITING


def test_where_the_end_is_known_it_is_told_in_the_devices_own_time() -> None:
    wait = waits_for(Conditions(windows=NIGHTS), Surroundings(now_ms=NOON, zone=ZoneInfo("Asia/Kolkata")))
    assert wait is not None
    assert wait.until_ms == NOON + int(4.5 * 3_600_000)
    assert wait.detail == "outside the maintenance windows; opens 2026-03-04 22:00+05:30"


def test_the_owners_of_the_lock_are_named() -> None:
    wait = waits_for(Conditions(unlocked=True), Surroundings(now_ms=NOON, locked_by=("press", "vision")))
    assert wait is not None
    assert wait.detail == "locked by press, vision"


def test_examples() -> None:
    assert doctest.testmod(conditions).failed == 0


# --- mains power ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("supplies", "mains"),
    [
        ({}, True),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Charging"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Full"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "AC": {"type": "Mains", "online": "1"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "AC": {"type": "Mains", "online": "0"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Not charging"}, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"ups": {"type": "UPS", "status": "Discharging"}}, False),
        ({"usb": {"type": "USB", "online": "0"}}, True),  # a board fed by another way
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "usb": {"type": "USB", "online": "1"}}, True),
        ({"mouse": {"type": "Battery", "status": "Discharging", "scope": "Device"}}, True),
        ({"odd": {"type": "Battery"}}, True),
        ({"odd": {}}, True),
    ],
)
def test_mains_power_as_the_kernel_tells_it(tmp_path: Path, supplies: dict[str, dict[str, str]], mains: bool) -> None:
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content + "\n")
    assert on_mains(tmp_path) is mains


def test_a_device_without_supplies_is_on_mains(tmp_path: Path) -> None:
    assert on_mains(tmp_path / "nothing")


# --- time zone ------------------------------------------------------------------------------------------------------


def system(root: Path, *, link: str = "", copy: str = "", written: str = "") -> Path:
    (root / "etc").mkdir()
    if link:
        (root / "etc/localtime").symlink_to(link)
    if copy:
        (root / "etc/localtime").write_bytes((Path("/usr/share/zoneinfo") / copy).read_bytes())
    if written:
        (root / "etc/timezone").write_text(written + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "tz", "name"),
    [
        ({"link": "/usr/share/zoneinfo/Europe/Berlin"}, "", "Europe/Berlin"),
        ({"link": "../usr/share/zoneinfo/posix/Asia/Kolkata"}, "", "Asia/Kolkata"),
        ({"link": "/usr/share/zoneinfo/America/Argentina/Ushuaia"}, "", "America/Argentina/Ushuaia"),
        ({"link": "/usr/share/zoneinfo/Etc/GMT+5"}, "", "Etc/GMT+5"),
        ({"written": "Asia/Shanghai"}, "", "Asia/Shanghai"),
        ({"link": "/somewhere/else", "written": "Asia/Shanghai"}, "", "Asia/Shanghai"),
        ({"link": "/usr/share/zoneinfo/Europe/Berlin"}, "Asia/Tokyo", "Asia/Tokyo"),
        ({"link": "/usr/share/zoneinfo/Europe/Berlin"}, ":Asia/Tokyo", "Asia/Tokyo"),
        ({"link": "/usr/share/zoneinfo/Europe/Berlin"}, ":/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        ({"link": "/usr/share/zoneinfo/Europe/Berlin"}, "CET-1CEST,M3.5.0,M10.5.0/3", "UTC"),
        ({"written": "../../etc/passwd"}, "", "UTC"),
        ({"written": "x" * 4000}, "", "UTC"),
        ({}, "", "UTC"),
    ],
)
def test_the_name_of_the_time_zone(tmp_path: Path, files: dict[str, str], tz: str, name: str) -> None:
    assert zone_name(system(tmp_path, **files), tz) == name


def test_a_zone_known_by_its_rules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy instead of a link, as some images have it: nameless, but its rules hold."""
    monkeypatch.delenv("TZ", raising=False)
    zone = local_zone(system(tmp_path, copy="Europe/Berlin", written="Not/AZone"))
    assert (
        datetime(2026, 7, 1, tzinfo=zone).utcoffset()
        == datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")).utcoffset()
    )


def test_without_any_zone_it_is_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Nowhere/AtAll")
    timezone._zone.cache_clear()
    zone = local_zone(tmp_path)
    assert datetime(2026, 7, 1, tzinfo=zone).utcoffset() == datetime(2026, 7, 1, tzinfo=UTC).utcoffset()


def test_looking_around_for_real() -> None:
    here = surroundings.look_around(NOON, NOON + 60_000, None)
    assert (here.now_ms, here.clock_set, here.idle_s) == (NOON + 60_000, True, None)
    assert here.mains_power is power.on_mains()
    assert not surroundings.look_around(0, NOON, None).clock_set
