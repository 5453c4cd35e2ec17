"""Keeps each runner within its model's budget, so that a build that takes too much harms itself and not the device's applications.

**Memory**: by a control group of its own where we may make one (version 2 where it was delegated to us, or version 1), which counts all
that the runner has resident and ends it beyond that; else by RLIMIT_DATA, beyond which the runtime gets no more (and says so, or dies of it).

**Processor time**: by a control group too, which divides it by weight and bounds it by quota; else by nice values, and by binding the
runner to as many cores. A control group makes idle scheduling hold within itself alone, so the group of a runner that loads in the
background is idle as a whole, until the runner is to serve.

Sources: Linux's `Documentation/admin-guide/cgroup-v2.rst` (delegation; no processes beside child groups; `cpu.weight`, `cpu.max`,
`cpu.idle`), `cgroup-v1/memory.rst`, `scheduler/sched-design-CFS.rst` and `sched-bwc.rst` (`cpu.shares`, `cpu.cfs_quota_us`), `getrlimit(2)`, `setpriority(2)`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from covey_agent.gateway.budget import Budget, Budgets, Priority

log = logging.getLogger(__name__)

PREFIX = "covey-runner-"
_PARENTS = "covey-agent"
_MOUNT, _TOLD = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_STEP = {Priority.LOW: 1 / 8, Priority.NORMAL: 1.0, Priority.HIGH: 8.0}
_NICE = {Priority.LOW: 10, Priority.NORMAL: 0, Priority.HIGH: -5}
_PERIOD_US = 100_000
_USUAL_WEIGHT = {1: 1024, 2: 100}
_LEAST_WEIGHT = {1: 2, 2: 1}


@dataclass(frozen=True)
class Division:
    """A control group in which others may be made, one for each runner. `version` of the control groups: 1 or 2."""

    parent: Path
    version: int

    @property
    def name(self) -> str:
        return f"cgroup version {self.version}"

    def group(self, pid: int) -> Path:
        return self.parent / f"{PREFIX}{pid}"

    def add(self, pid: int) -> None:
        """Raises `OSError`."""
        self.group(pid).mkdir(exist_ok=True)
        _write(self.group(pid) / "cgroup.procs", pid)

    def limit_memory(self, pid: int, limit_bytes: int) -> None:
        """Raises `OSError`."""
        self.group(pid).mkdir(exist_ok=True)
        _write(self.group(pid) / ("memory.max" if self.version == 2 else "memory.limit_in_bytes"), limit_bytes)

    def limit_time(self, pid: int, cpus: float | None) -> None:
        """Raises `OSError`."""
        group = self.group(pid)
        group.mkdir(exist_ok=True)
        if cpus is None:
            return
        quota = max(1000, round(cpus * _PERIOD_US))
        if self.version == 2:
            _write(group / "cpu.max", f"{quota} {_PERIOD_US}")
        else:
            _write(group / "cpu.cfs_period_us", _PERIOD_US)
            _write(group / "cpu.cfs_quota_us", quota)

    def weigh(self, pid: int, priority: Priority | None) -> None:
        """None: idle. Raises `OSError`."""
        group, usual = self.group(pid), _USUAL_WEIGHT[self.version]
        idle, weight = group / "cpu.idle", group / ("cpu.weight" if self.version == 2 else "cpu.shares")
        if priority is None:
            if idle.exists():  # since Linux 5.15
                _write(idle, 1)
            else:
                _write(weight, _LEAST_WEIGHT[self.version])
            return
        if idle.exists():
            _write(idle, 0)
        _write(weight, round(usual * _STEP[priority]))

    def remove(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # still on its way out; swept at the next start
            self.group(pid).rmdir()

    def sweep(self) -> None:
        """Remove what a gateway before has left."""
        for group in self.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def find_division(controller: str, mount: Path = _MOUNT, told: Path = _TOLD) -> Division | None:
    """Where this process may divide what the controller ("memory" or "cpu") counts; None: nowhere."""
    for attempt in (_version_2, _version_1):
        try:
            found = attempt(controller, mount, told.read_text(encoding="utf-8"))
        except OSError as error:
            log.debug("%s, %s: %s", controller, attempt.__name__, error)
            continue
        if found is not None:
            found.sweep()
            return found
    return None


def _version_2(controller: str, mount: Path, told: str) -> Division | None:
    own = next((line[3:] for line in told.splitlines() if line.startswith("0::")), None)
    if own is None:
        return None
    parent = mount / own.lstrip("/")
    moved = parent.name == _PARENTS  # by a gateway before, or for another controller
    parent = parent.parent if moved else parent
    if controller not in (parent / "cgroup.controllers").read_text(encoding="ascii").split() or not _delegated(parent):
        return None
    if not moved:
        # A group whose controllers its children have may hold no process itself.
        ours = parent / _PARENTS
        ours.mkdir(exist_ok=True)
        for pid in (parent / "cgroup.procs").read_text(encoding="ascii").split():
            _write(ours / "cgroup.procs", int(pid))
    _write(parent / "cgroup.subtree_control", f"+{controller}")
    return Division(parent, 2)


def _delegated(group: Path) -> bool:
    """Whether systemd has given us the group to make others in (`Delegate=`); what is anybody else's is left alone."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _version_1(controller: str, mount: Path, told: str) -> Division | None:
    lines = (line.split(":", 2) for line in told.splitlines())
    own = next((path for _, controllers, path in lines if controller in controllers.split(",")), None)
    if own is None:
        return None
    # In a container the group is mounted as the root, and known by its path outside.
    for parent in (mount / controller / own.lstrip("/"), mount / controller):
        if (parent / "cgroup.procs").exists():
            probe = parent / f"{PREFIX}probe"
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            return Division(parent, 1)
    return None


class Cores:
    """Whole cores instead of a quota: each runner is bound to those that fewest others are bound to."""

    def __init__(self, cores: frozenset[int]) -> None:
        self._cores = cores
        self._bound: dict[int, frozenset[int]] = {}

    def bind(self, pid: int, cpus: float) -> None:
        """Raises `OSError`."""
        taken = [core for bound in self._bound.values() for core in bound]
        by_use = sorted(self._cores, key=lambda core: (taken.count(core), core))
        chosen = frozenset(by_use[: max(1, math.ceil(cpus))])
        os.sched_setaffinity(pid, chosen)
        self._bound[pid] = chosen

    def release(self, pid: int) -> None:
        self._bound.pop(pid, None)


class Enclosure:
    """`enclose` a process that has just begun, `serve` when it is to answer requests, `quiet` when it only has to end, `release` when it has.

    None of them raises: where a limit is not to be had, the log says so, and the runner goes on without."""

    def __init__(self, budgets: Budgets, find: Callable[[str], Division | None] = find_division) -> None:
        self._budgets = budgets
        self._find = find
        self._found: dict[str, Division | None] = {}
        self._cores = Cores(frozenset(os.sched_getaffinity(0)))

    def enclose(self, pid: int, model: str, *, background: bool) -> None:
        budget = self._budgets.of(model)
        if budget.memory_bytes is not None:
            self._try(pid, "memory limit", lambda: self._limit_memory(pid, budget.memory_bytes or 0))
        if self._budgets.divide_time:
            self._try(pid, "share of the processor", lambda: self._divide_time(pid, budget, background=background))

    def serve(self, pid: int, model: str) -> None:
        """A runner that was loaded in the background is ready."""
        division = self._division("cpu") if self._budgets.divide_time else None
        if division is not None:
            priority = self._budgets.of(model).priority
            self._try(pid, "share of the processor", lambda: division.weigh(pid, priority))

    def quiet(self, pid: int) -> None:
        """It only has to give its memory back."""
        division = self._division("cpu") if self._budgets.divide_time else None
        if division is not None:
            self._try(pid, "idle share", lambda: division.weigh(pid, None))

    def release(self, pid: int) -> None:
        for division in self._found.values():
            if division is not None:
                division.remove(pid)
        self._cores.release(pid)

    def _limit_memory(self, pid: int, limit_bytes: int) -> None:
        division = self._division("memory")
        if division is not None:
            division.limit_memory(pid, limit_bytes)
            division.add(pid)
        else:
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    def _divide_time(self, pid: int, budget: Budget, *, background: bool) -> None:
        division = self._division("cpu")
        if division is not None:
            division.limit_time(pid, budget.cpus)
            division.weigh(pid, None if background else budget.priority)
            division.add(pid)
            return
        if budget.cpus is not None:
            self._cores.bind(pid, budget.cpus)
        if budget.priority is not Priority.NORMAL:
            os.setpriority(os.PRIO_PROCESS, pid, _NICE[budget.priority])

    def _division(self, controller: str) -> Division | None:
        if controller not in self._found:
            self._found[controller] = found = self._find(controller)
            other = "RLIMIT_DATA" if controller == "memory" else "nice values and whole cores"
            log.info("runners' %s is bounded by %s", controller, found.name if found is not None else other)
        return self._found[controller]

    def _try(self, pid: int, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except ProcessLookupError:
            pass  # it has ended already
        except (OSError, ValueError) as error:
            log.error("runner %d has no %s: %s", pid, what, error)


def _write(path: Path, value: int | str) -> None:
    path.write_text(str(value), encoding="ascii")
