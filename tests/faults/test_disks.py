"""Disks that are full, out of inodes or read-only, under a real agent: what serves goes on serving, and all is done once it can be."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_hil.faults.disk import LoopDisk, why_not
from covey_hil.testing.agent_site import Device, Site
from covey_hil.testing.made_builds import make_build
from covey_hil.testing.waiting import until
from tests.faults.conftest import SmallDisk

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

Disks = Callable[[str], SmallDisk]


def move(device: Device, disk: SmallDisk) -> None:
    """The device's whole state folder lies on the disk from now on."""
    target = disk.point / "state"
    subprocess.run(["cp", "-a", str(device.state), str(target)], check=True)
    device.state = target


def fill(path: Path) -> Path:
    """Not one byte more."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def use_up_inodes(folder: Path) -> Path:
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (folder / str(number)).touch()
    return folder


def test_a_start_on_a_full_disk_serves(site: Site, small_disk: Disks) -> None:
    disk = small_disk("size=8m")
    move(site.device, disk)
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    site.device.stop()
    ballast = fill(disk.point / "ballast")
    site.device.start()
    until(lambda: site.device.serving, "the build to serve")
    assert site.device.infer(1.0) == 2.0
    # It cannot follow yet, and does as soon as there is room.
    order = site.server.order(make_build("1.1", 3.0))
    until(lambda: "cannot be stored" in site.device.log(), "the log line")
    assert site.device.infer(1.0) == 2.0
    ballast.unlink()
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0
    assert "Traceback" not in site.device.log()


def test_no_inode_left(site: Site, small_disk: Disks) -> None:
    disk = small_disk("size=16m,nr_inodes=200")
    move(site.device, disk)
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    used = use_up_inodes(disk.point / "used")
    order = site.server.order(make_build("1.1", 3.0))
    until(lambda: "cannot be stored" in site.device.log(), "the log line")
    assert site.device.infer(1.0) == 2.0
    site.device.kill()
    site.device.start()
    until(lambda: site.device.serving, "the build to serve, whatever cannot be written")
    assert site.device.infer(1.0) == 2.0
    subprocess.run(["rm", "-r", str(used)], check=True)
    site.server.send_order(order)
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[LoopDisk]:
    if (why := why_not(tmp_path)) is not None:
        pytest.skip(why)
    disk = LoopDisk(tmp_path)
    yield disk
    disk.eject()


def test_a_disk_that_turns_read_only(failing_disk: LoopDisk, site: Site) -> None:
    """As ext4 does by itself when it meets an error; only a repair makes it writable again."""
    failing_disk.keep("device", site.device.state)
    failing_disk.insert("device")
    site.device.state = failing_disk.point / "state"
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    failing_disk.fail()
    order = site.server.order(make_build("1.1", 3.0))
    until(lambda: "cannot be stored" in site.device.log(), "the log line")
    assert site.device.infer(1.0) == 2.0
    assert site.device.process is not None
    assert site.device.process.poll() is None
    site.device.kill()
    site.device.kill_gateway()
    failing_disk.repair()
    site.device.start()
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0


def test_a_start_on_a_read_only_disk_serves(site: Site, small_disk: Disks) -> None:
    disk = small_disk("size=16m")
    move(site.device, disk)
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    site.device.stop()
    disk.remount("ro")
    site.device.start()
    until(lambda: site.device.serving, "the build to serve")
    assert site.device.infer(1.0) == 2.0
    order = site.server.order(make_build("1.1", 3.0))
    until(lambda: "cannot be stored" in site.device.log(), "the log line")
    assert site.device.infer(1.0) == 2.0
    disk.remount("rw")
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0
    assert "Traceback" not in site.device.log()


def test_a_blob_that_rots_under_a_living_gateway_is_fetched_when_that_is_gone(site: Site) -> None:
    build = make_build("1.0", 2.0, filler=200_000)
    site.device.start()
    order = site.server.order(build)
    site.server.reached(order, State.ACTIVE)
    blob = site.device.state / "blobs" / build.manifest.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(os.urandom(len(build.contents[1])))
    assert site.device.infer(1.0) == 2.0
    site.device.kill_gateway()
    until(lambda: any(report.reason is Reason.DIGEST_MISMATCH for report in site.server.reports), "the reason")
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 2.0
    assert blob.read_bytes() == build.contents[1]
