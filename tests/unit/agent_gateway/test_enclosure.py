"""Where a runner's budget is kept: by the files that the kernel shows, and on real processes."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from covey_agent.gateway.budget import Budget, Budgets, Priority
from covey_agent.gateway.enclosure import PREFIX, Cores, Division, Enclosure, find_division

STARTED = "import sys; print('started', flush=True); sys.stdin.readline()\n"
EATER = f"{STARTED}b = bytearray(int(sys.argv[1]))\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('had it')"
SPINNER = f"{STARTED}while True: pass"
MB = 1_000_000


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


def enclosure(found: Division | None, **budgets: Budget) -> Enclosure:
    return Enclosure(Budgets(budgets.items()), lambda _controller: found)


def test_version_2_as_systemd_delegates_it(tmp_path: Path) -> None:
    own = group(
        tmp_path / "system.slice/covey-agent.service",
        cgroup__controllers="cpu memory pids\n",
        cgroup__procs="41\n42\n",
        cgroup__subtree_control="",
    )
    here = told(tmp_path, "0::/system.slice/covey-agent.service\n")
    assert find_division("memory", tmp_path, here) is None  # not ours to divide
    delegate(own)
    assert find_division("memory", tmp_path, here) == Division(own, 2)
    # Our own processes are out of the way, and the children have the controller.
    assert (own / "covey-agent/cgroup.procs").read_text() == "42"
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    assert find_division("cpu", tmp_path, here) == Division(own, 2)
    assert (own / "cgroup.subtree_control").read_text() == "+cpu"


def test_a_runner_in_version_2(tmp_path: Path) -> None:
    budget = Budget(memory_bytes=5 * MB, cpus=1.5, priority=Priority.HIGH)
    kept, place = enclosure(Division(tmp_path, 2), m=budget), tmp_path / f"{PREFIX}77"
    kept.enclose(77, "m", background=False)
    files = {path.name: path.read_text() for path in place.iterdir()}
    assert files == {
        "memory.max": "5000000",
        "cpu.max": "150000 100000",
        "cpu.weight": "800",
        "cgroup.procs": "77",
    }


def test_a_runner_that_loads_in_the_background_is_idle_until_it_serves(tmp_path: Path) -> None:
    kept, place = enclosure(Division(tmp_path, 2), m=Budget(priority=Priority.LOW)), tmp_path / f"{PREFIX}77"
    place.mkdir()
    (place / "cpu.idle").write_text("0")
    kept.enclose(77, "m", background=True)
    assert (place / "cpu.idle").read_text() == "1"
    assert not (place / "cpu.weight").exists()  # the kernel takes none of an idle group
    kept.serve(77, "m")
    assert ((place / "cpu.idle").read_text(), (place / "cpu.weight").read_text()) == ("0", "12")
    kept.quiet(77)
    assert (place / "cpu.idle").read_text() == "1"


def test_before_linux_5_15_it_has_the_least_weight(tmp_path: Path) -> None:
    for version, file, least, usual in ((1, "cpu.shares", "2", "1024"), (2, "cpu.weight", "1", "100")):
        kept = enclosure(Division(tmp_path, version), other=Budget(cpus=1))
        kept.enclose(version, "m", background=True)
        assert (tmp_path / f"{PREFIX}{version}" / file).read_text() == least
        kept.serve(version, "m")
        assert (tmp_path / f"{PREFIX}{version}" / file).read_text() == usual


def test_version_2_where_a_gateway_before_has_moved_us(tmp_path: Path) -> None:
    service = group(
        tmp_path / "covey.service", cgroup__controllers="memory", cgroup__procs="", cgroup__subtree_control=""
    )
    group(service / "covey-agent", cgroup__controllers="memory", cgroup__procs="41\n")
    delegate(service)
    found = find_division("memory", tmp_path, told(tmp_path, "0::/covey.service/covey-agent\n"))
    assert found == Division(service, 2)
    assert not (service / "covey-agent/covey-agent").exists()


def test_version_1(tmp_path: Path) -> None:
    group(tmp_path / "memory/docker/abc", cgroup__procs="")
    group(tmp_path / "cpu", cgroup__procs="")
    here = told(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    memory, time_ = find_division("memory", tmp_path, here), find_division("cpu", tmp_path, here)
    assert memory == Division(tmp_path / "memory/docker/abc", 1)
    assert time_ == Division(tmp_path / "cpu", 1)  # in a container, which sees its own group as the root
    kept = Enclosure(
        Budgets([("m", Budget(memory_bytes=5 * MB, cpus=0.5))]), {"memory": memory, "cpu": time_}.__getitem__
    )
    kept.enclose(77, "m", background=False)
    assert (tmp_path / f"memory/docker/abc/{PREFIX}77/memory.limit_in_bytes").read_text() == "5000000"
    assert (tmp_path / f"cpu/{PREFIX}77/cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / f"cpu/{PREFIX}77/cpu.shares").read_text() == "1024"


@pytest.mark.parametrize(
    "text", ["", "0::/nowhere\n", "4:memory:/nowhere\n", "4:cpu,cpuacct:/\n", "0::/without-memory\n"]
)
def test_where_there_is_no_group(tmp_path: Path, text: str) -> None:
    group(tmp_path / "without-memory", cgroup__controllers="cpu pids")
    assert find_division("memory", tmp_path, told(tmp_path, text)) is None


def test_what_a_gateway_before_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}12").mkdir()
    (tmp_path / f"{PREFIX}13").mkdir()
    division = Division(tmp_path, 2)
    division.remove(12)
    assert not (tmp_path / f"{PREFIX}12").exists()
    division.sweep()
    assert not (tmp_path / f"{PREFIX}13").exists()


def test_a_model_without_a_budget_is_left_alone(tmp_path: Path) -> None:
    kept = enclosure(Division(tmp_path, 2), other=Budget(memory_bytes=MB))
    kept.enclose(77, "m", background=True)
    kept.serve(77, "m")
    kept.quiet(77)
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_not_to_be_had_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{PREFIX}77").write_text("in the way")
    with caplog.at_level(logging.ERROR):
        enclosure(Division(tmp_path, 2), m=Budget(memory_bytes=MB)).enclose(77, "m", background=False)
    assert "runner 77 has no memory limit" in caplog.text


# --- on real processes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def child(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """It has started, and waits for a line before it does anything else."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def eat(kept: Enclosure, size: int) -> subprocess.CompletedProcess[str]:
    with child(EATER, str(size)) as eater:
        kept.enclose(eater.pid, "m", background=False)
        out, err = eater.communicate("go\n", timeout=60)
        kept.release(eater.pid)
        return subprocess.CompletedProcess([], eater.returncode, out, err)


def test_a_process_gets_no_more_data_than_its_limit() -> None:
    kept = enclosure(None, m=Budget(memory_bytes=100 * MB))
    assert eat(kept, 20 * MB).stdout == "had it\n"
    assert "MemoryError" in eat(kept, 300 * MB).stderr


def real(controller: str) -> Division:
    found = find_division(controller)
    if found is None:
        pytest.skip(f"no {controller} control group may be made here")
    return found


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make control groups here")
def test_a_process_ends_beyond_its_groups_limit() -> None:
    kept = enclosure(real("memory"), m=Budget(memory_bytes=100 * MB))
    assert eat(kept, 20 * MB).stdout == "had it\n"
    assert eat(kept, 300 * MB).returncode == -9


def spin(seconds: float, *spinners: subprocess.Popen[str]) -> list[float]:
    """Cores' worth of time that each takes, measured for as long as it takes them to compute so many seconds together: what else runs on
    the machine changes how long that is, and not who comes first."""
    for spinner in spinners:
        assert spinner.stdin is not None
        spinner.stdin.write("go\n")
    began, before = time.monotonic(), spent(spinners)
    while sum(now := spent(spinners)) - sum(before) < seconds:
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    elapsed = time.monotonic() - began
    return [(end - start) / elapsed for start, end in zip(before, now, strict=True)]


def spent(spinners: Sequence[subprocess.Popen[str]]) -> list[float]:
    """Seconds that each has computed."""
    return [sum(psutil.Process(one.pid).cpu_times()[:2]) for one in spinners]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make control groups here")
def test_a_process_gets_no_more_time_than_its_quota() -> None:
    kept = enclosure(real("cpu"), m=Budget(cpus=0.25))
    with child(SPINNER) as spinner:
        kept.enclose(spinner.pid, "m", background=False)
        (share,) = spin(0.5, spinner)
    kept.release(spinner.pid)
    assert share < 0.35


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make control groups here")
def test_who_has_priority_computes_first() -> None:
    kept = enclosure(real("cpu"), first=Budget(priority=Priority.HIGH), last=Budget(priority=Priority.LOW))
    core = {min(os.sched_getaffinity(0))}
    with child(SPINNER) as first, child(SPINNER) as last:
        for spinner, model in ((first, "first"), (last, "last")):
            os.sched_setaffinity(spinner.pid, core)
            kept.enclose(spinner.pid, model, background=False)
        shares = spin(1.0, first, last)
        assert shares[0] > 8 * shares[1]
        kept.quiet(first.pid)  # idle as a group: now the other is first
        shares = spin(1.0, first, last)
        assert shares[1] > 8 * shares[0]
    for spinner in (first, last):
        kept.release(spinner.pid)


def test_without_control_groups_it_is_nice_and_bound_to_cores() -> None:
    kept = enclosure(None, m=Budget(cpus=0.5, priority=Priority.LOW))
    with child(SPINNER) as spinner:
        kept.enclose(spinner.pid, "m", background=False)
        assert os.getpriority(os.PRIO_PROCESS, spinner.pid) == 10
        assert len(os.sched_getaffinity(spinner.pid)) == 1


def test_cores_are_taken_where_fewest_are() -> None:
    here = sorted(os.sched_getaffinity(0))
    if len(here) < 2:
        pytest.skip("one core: there is no choice")
    cores = Cores(frozenset(here[:2]))
    with child(SPINNER) as one, child(SPINNER) as two, child(SPINNER) as three:
        cores.bind(one.pid, 1)
        cores.bind(two.pid, 0.3)
        assert os.sched_getaffinity(one.pid) != os.sched_getaffinity(two.pid)
        cores.release(one.pid)
        cores.bind(three.pid, 1)
        assert os.sched_getaffinity(three.pid) == {here[0]}
