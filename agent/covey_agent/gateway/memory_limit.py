"""A limit on the memory of each runner, so that a build that takes too much ends alone instead of the device's applications.

By a control group of its own where we may make one (version 2 where it was delegated to us, or version 1), which counts all that the runner
has resident and ends it beyond that; else by RLIMIT_DATA, beyond which the runtime gets no more (and says so, or dies of it).

Sources: Linux's `Documentation/admin-guide/cgroup-v2.rst` (delegation; no processes beside child groups), `cgroup-v1/memory.rst`,
`getrlimit(2)`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

PREFIX = "covey-runner-"
_PARENTS = "covey-agent"


class Enclosure(Protocol):
    """Where a limit is kept. `enclose` limits a process that has just begun; `release` is told that it has ended."""

    name: str

    def enclose(self, pid: int, limit_bytes: int) -> None: ...

    def release(self, pid: int) -> None: ...


class DataLimit:
    """RLIMIT_DATA: what the process allocates for itself, not what it maps of files."""

    name = "RLIMIT_DATA"

    def enclose(self, pid: int, limit_bytes: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    def release(self, pid: int) -> None:
        """It went with the process."""


class ControlGroup:
    """`parent` is a group in which children may be made; `limit_file` is what bounds one."""

    def __init__(self, name: str, parent: Path, limit_file: str) -> None:
        self.name = name
        self._parent = parent
        self._limit_file = limit_file

    def enclose(self, pid: int, limit_bytes: int) -> None:
        """Raises `OSError`."""
        group = self._parent / f"{PREFIX}{pid}"
        group.mkdir(exist_ok=True)
        _write(group / self._limit_file, limit_bytes)
        _write(group / "cgroup.procs", pid)

    def release(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # still on its way out; swept at the next start
            (self._parent / f"{PREFIX}{pid}").rmdir()

    def sweep(self) -> None:
        """Remove what a gateway before has left."""
        for group in self._parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def find_enclosure(mount: Path = Path("/sys/fs/cgroup"), told: Path = Path("/proc/self/cgroup")) -> Enclosure:
    """The best that this process may use."""
    for attempt in (_version_2, _version_1):
        try:
            group = attempt(mount, told.read_text(encoding="utf-8"))
        except OSError as error:
            log.debug("%s: %s", attempt.__name__, error)
            continue
        if group is not None:
            group.sweep()
            return group
    return DataLimit()


def _version_2(mount: Path, told: str) -> ControlGroup | None:
    own = next((line[3:] for line in told.splitlines() if line.startswith("0::")), None)
    if own is None:
        return None
    parent = mount / own.lstrip("/")
    moved = parent.name == _PARENTS  # by a gateway before
    parent = parent.parent if moved else parent
    if "memory" not in (parent / "cgroup.controllers").read_text(encoding="ascii").split() or not _delegated(parent):
        return None
    if not moved:
        # A group whose controllers its children have may hold no process itself.
        ours = parent / _PARENTS
        ours.mkdir(exist_ok=True)
        for pid in (parent / "cgroup.procs").read_text(encoding="ascii").split():
            _write(ours / "cgroup.procs", int(pid))
    (parent / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
    return ControlGroup("cgroup version 2", parent, "memory.max")


def _delegated(group: Path) -> bool:
    """Whether systemd has given us the group to make others in (`Delegate=yes`); what is anybody else's is left alone."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _version_1(mount: Path, told: str) -> ControlGroup | None:
    own = next((line.split(":", 2)[2] for line in told.splitlines() if "memory" in line.split(":")[1].split(",")), None)
    if own is None:
        return None
    # In a container the group is mounted as the root, and known by its path outside.
    for parent in (mount / "memory" / own.lstrip("/"), mount / "memory"):
        if (parent / "cgroup.procs").exists():
            probe = parent / f"{PREFIX}probe"
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            return ControlGroup("cgroup version 1", parent, "memory.limit_in_bytes")
    return None


class MemoryLimit:
    """Limits each runner to `limit_bytes`; None: no limit."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._enclosure: Enclosure | None = None

    def enclose(self, pid: int) -> None:
        """Never raises: where no limit is to be had, the log says so, and the runner goes on without."""
        if self._limit_bytes is None:
            return
        if self._enclosure is None:
            self._enclosure = find_enclosure()
            log.info("each runner may have %.0f MB, by %s", self._limit_bytes / 1e6, self._enclosure.name)
        try:
            self._enclosure.enclose(pid, self._limit_bytes)
        except (OSError, ValueError) as error:
            log.error("runner %d has no memory limit: %s", pid, error)

    def release(self, pid: int) -> None:
        if self._enclosure is not None:
            self._enclosure.release(pid)


def _write(path: Path, value: int) -> None:
    path.write_text(str(value), encoding="ascii")
