"""What the device measures of itself, from files as its kernel shows them: boards that are not here, so laid out as their documentation says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from covey_agent.accelerators import Accelerators
from covey_agent.measure import Meter, Throttling
from covey_contract.messages import MAX_ACCELERATORS, Resources, Telemetry
from covey_contract.wire import decode, encode

Lay = Callable[[str, str], None]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    def put(place: str, text: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)

    return put


def none() -> Iterator[float]:
    yield from ()


def test_a_jetson_tells_its_gpu_in_per_mille(tmp_path: Path, lay: Lay) -> None:
    lay("devices/platform/gpu.0/load", "437\n")
    lay("devices/gpu.0/load", "1\n")  # the older place of the same
    assert Accelerators(tmp_path, none).read(1.0) == {"gpu": 43.7}


def test_an_npu_that_counts_its_time_says_nothing_before_the_second_look(tmp_path: Path, lay: Lay) -> None:
    loads = Accelerators(tmp_path, none)
    lay("class/accel/accel0/device/npu_busy_time_us", "5000000\n")
    assert loads.read(100.0) == {}
    lay("class/accel/accel0/device/npu_busy_time_us", "7500000\n")
    assert loads.read(110.0) == {"npu": 25.0}
    lay("class/accel/accel0/device/npu_busy_time_us", "10\n")  # its driver was loaded again
    assert loads.read(120.0) == {"npu": 0.0}


def test_devfreq_and_several_of_a_kind(tmp_path: Path, lay: Lay) -> None:
    lay("class/devfreq/fdab0000.npu/load", "62@800000000Hz\n")
    lay("class/devfreq/fb000000.gpu/load", "7@300000000Hz\n")
    lay("class/drm/card0/device/gpu_busy_percent", "12\n")
    lay("class/drm/card0-DP-1/status", "connected\n")
    assert Accelerators(tmp_path, lambda: iter([99.0])).read(1.0) == {
        "gpu": 12.0,
        "gpu1": 7.0,
        "gpu2": 99.0,
        "npu": 62.0,
    }


@pytest.mark.parametrize("text", ["", "garbage", "-1e9", "1e9", "nan@", "٤"])
def test_what_makes_no_sense_is_left_out_or_bounded(tmp_path: Path, lay: Lay, text: str) -> None:
    lay("class/devfreq/fdab0000.npu/load", text)
    assert all(0 <= percent <= 100 for percent in Accelerators(tmp_path, none).read(1.0).values())


def test_no_more_than_a_record_may_hold(tmp_path: Path) -> None:
    found = Accelerators(tmp_path, lambda: iter([1.0] * 20)).read(1.0)
    assert len(found) == MAX_ACCELERATORS
    record = Telemetry(seq=1, boot_id="b", start_ms=1, end_ms=2, resources=Resources(accelerators=found))
    assert decode(Telemetry, encode(record)) == record


def test_nothing_here_tells(tmp_path: Path) -> None:
    assert Throttling(tmp_path).read() is None
    assert Accelerators(tmp_path, none).read(1.0) == {}


def test_a_raspberry_pi_is_held_back_now_or_was_once(tmp_path: Path, lay: Lay) -> None:
    lay("devices/platform/soc/soc:firmware/get_throttled", "50000\n")  # it was: bits 16 and 18
    assert Throttling(tmp_path).read() is False
    lay("devices/platform/soc/soc:firmware/get_throttled", "50004\n")
    assert Throttling(tmp_path).read() is True


def test_a_fan_that_runs_holds_nothing_back(tmp_path: Path, lay: Lay) -> None:
    for number, (kind, state) in enumerate((("pwm-fan", 3), ("thermal-cpufreq-0", 0), ("gpu-throttle-alert", 0))):
        lay(f"class/thermal/cooling_device{number}/type", f"{kind}\n")
        lay(f"class/thermal/cooling_device{number}/cur_state", f"{state}\n")
    assert Throttling(tmp_path).read() is False
    for kind in ("1", "2"):
        lay(f"class/thermal/cooling_device{kind}/cur_state", "1\n")
        assert Throttling(tmp_path).read() is True
        lay(f"class/thermal/cooling_device{kind}/cur_state", "0\n")


def test_x86_counts_how_often_it_was_held_back(tmp_path: Path, lay: Lay) -> None:
    throttling = Throttling(tmp_path)
    lay("devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "12\n")
    assert throttling.read() is False  # before we came
    assert throttling.read() is False
    lay("devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "13\n")
    assert throttling.read() is True
    assert throttling.read() is False


def test_the_warmest_zone_that_makes_sense(tmp_path: Path, lay: Lay) -> None:
    for number, text in enumerate(("41000", "63500", "-274000", "999999999", "soon")):
        lay(f"class/thermal/thermal_zone{number}/temp", text)
    assert Meter(tmp_path, tmp_path).read(1.0, None, None).temperature_c == 63.5


def test_what_this_machine_tells_fits_a_record(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    meter.read(1.0, psutil.Process().pid, None)
    resources = meter.read(2.0, psutil.Process().pid, None)
    record = Telemetry(seq=1, boot_id="b", start_ms=1, end_ms=2, resources=resources)
    assert decode(Telemetry, encode(record)) == record
    assert resources.memory_available_mb > 1
