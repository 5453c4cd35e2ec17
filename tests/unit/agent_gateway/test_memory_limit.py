"""Where a runner's memory limit is kept: by the files that the kernel shows, and on real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from covey_agent.gateway.memory_limit import PREFIX, ControlGroup, DataLimit, find_enclosure

EATER = "import sys; sys.stdin.readline(); b = bytearray(int(sys.argv[1]));\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('had it')"


def told(folder: Path, text: str) -> Path:
    (folder / "self").write_text(text)
    return folder / "self"


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def delegate(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.delegate", b"1")
    except OSError:
        pytest.skip("the disk keeps no extended attributes")


def test_version_2_as_systemd_delegates_it(tmp_path: Path) -> None:
    own = group(
        tmp_path / "system.slice/covey-agent.service",
        cgroup__controllers="cpu memory pids\n",
        cgroup__procs="41\n42\n",
        cgroup__subtree_control="",
    )
    here = told(tmp_path, "0::/system.slice/covey-agent.service\n")
    assert find_enclosure(tmp_path, here).name == "RLIMIT_DATA"  # not ours to divide
    delegate(own)
    found = find_enclosure(tmp_path, here)
    assert found.name == "cgroup version 2"
    # Our own processes are out of the way, and the children have the controller.
    assert (own / "covey-agent/cgroup.procs").read_text() == "42"
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    found.enclose(77, 5_000_000)
    assert (own / f"{PREFIX}77/memory.max").read_text() == "5000000"
    assert (own / f"{PREFIX}77/cgroup.procs").read_text() == "77"


def test_version_2_where_a_gateway_before_has_moved_us(tmp_path: Path) -> None:
    service = group(
        tmp_path / "covey.service", cgroup__controllers="memory", cgroup__procs="", cgroup__subtree_control=""
    )
    group(service / "covey-agent", cgroup__controllers="memory", cgroup__procs="41\n")
    delegate(service)
    found = find_enclosure(tmp_path, told(tmp_path, "0::/covey.service/covey-agent\n"))
    found.enclose(77, 5_000_000)
    assert (service / f"{PREFIX}77").is_dir()
    assert not (service / "covey-agent/covey-agent").exists()


def test_version_1(tmp_path: Path) -> None:
    group(tmp_path / "memory/docker/abc", cgroup__procs="")
    found = find_enclosure(tmp_path, told(tmp_path, "5:cpu:/\n4:memory:/docker/abc\n0::/\n"))
    assert found.name == "cgroup version 1"
    found.enclose(77, 5_000_000)
    assert (tmp_path / f"memory/docker/abc/{PREFIX}77/memory.limit_in_bytes").read_text() == "5000000"


@pytest.mark.parametrize(
    "text", ["", "0::/nowhere\n", "4:memory:/nowhere\n", "4:cpu,cpuacct:/\n", "0::/without-memory\n"]
)
def test_without_a_group_it_is_the_data_limit(tmp_path: Path, text: str) -> None:
    group(tmp_path / "without-memory", cgroup__controllers="cpu pids")
    assert find_enclosure(tmp_path, told(tmp_path, text)).name == "RLIMIT_DATA"


def test_what_a_gateway_before_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}12").mkdir()
    (tmp_path / f"{PREFIX}13").mkdir()
    limits = ControlGroup("test", tmp_path, "memory.max")
    limits.release(12)
    assert not (tmp_path / f"{PREFIX}12").exists()
    limits.sweep()
    assert not (tmp_path / f"{PREFIX}13").exists()


def eat(limits: DataLimit | ControlGroup, size: int) -> subprocess.CompletedProcess[str]:
    eater = subprocess.Popen(
        [sys.executable, "-c", EATER, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limits.enclose(eater.pid, 100_000_000)
    out, err = eater.communicate("go\n", timeout=60)
    limits.release(eater.pid)
    return subprocess.CompletedProcess([], eater.returncode, out, err)


def test_a_process_gets_no_more_data_than_its_limit() -> None:
    assert eat(DataLimit(), 20_000_000).stdout == "had it\n"
    done = eat(DataLimit(), 300_000_000)
    assert "MemoryError" in done.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make control groups here")
def test_a_process_ends_beyond_its_groups_limit() -> None:
    limits = find_enclosure()
    if not isinstance(limits, ControlGroup):
        pytest.skip("no memory control group may be made here")
    assert eat(limits, 20_000_000).stdout == "had it\n"
    assert eat(limits, 300_000_000).returncode == -9
