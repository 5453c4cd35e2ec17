"""Small disks that can be filled, made read-only or taken away, and an agent on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covey_hil.testing.agent_site import Site, opened
from covey_hil.testing.authority import Authority


class SmallDisk:
    """A file system in memory; `options` as mount(8) takes them."""

    def __init__(self, point: Path, options: str) -> None:
        self.point = point
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], check=True)

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.point)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.point)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], SmallDisk]]:
    disks: list[SmallDisk] = []

    def make(options: str) -> SmallDisk:
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        disks.append(SmallDisk(tmp_path / f"disk-{len(disks)}", options))
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def site(tmp_path: Path, authority: Authority, small_disk: Callable[[str], SmallDisk]) -> Iterator[Site]:  # noqa: ARG001
    """A real agent and gateway, a real broker, and a small server. They end before their disk goes, without which a gateway is not found again."""
    with opened(tmp_path, authority) as made:
        yield made
