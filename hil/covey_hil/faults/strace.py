"""System calls of a running process: counted, or the n-th of a kind failed or made its last, by strace.

Source: strace(1), "Tampering". Calls are counted from the moment strace is attached, each kind by itself.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Those with a question mark are not on every architecture.
WRITING = (
    "openat ?open ?creat write writev pwrite64 ?pwritev fsync fdatasync ?rename ?renameat ?renameat2 ?unlink unlinkat ?link linkat "
    "?symlink symlinkat ?mkdir mkdirat ?rmdir ftruncate ?truncate fallocate ?chmod fchmod fchmodat"
)
READING = "read pread64 getdents64 ?stat ?lstat newfstatat ?statx"
TALKING = "sendto"

_LINE = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<rest>.*)$")


@dataclass(frozen=True)
class Call:
    """The `number`-th call of this `name` since the start; `words`: as strace prints it."""

    name: str
    number: int
    words: str


@dataclass(frozen=True)
class Injection:
    """`what`: `signal=KILL` or `error=EIO`; `lasting`: this call and all later ones of this name."""

    name: str
    what: str
    when: int
    lasting: bool = False

    @property
    def option(self) -> str:
        return f"inject={self.name}:{self.what}:when={self.when}{'+' if self.lasting else ''}"


class Tracer:
    """strace on one process, until that ends."""

    def __init__(self, pid: int, log: Path, injections: tuple[Injection, ...] = ()) -> None:
        calls = ",".join(f"{WRITING} {READING} {TALKING}".split())
        words = ["strace", "-p", str(pid), "-y", "-s", "40", "-o", str(log), "-e", f"trace={calls}"]
        for injection in injections:
            words += ["-e", injection.option]
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.log = log
        self._wait_until_attached()

    def _wait_until_attached(self) -> None:
        errors = self._process.stderr
        assert errors is not None  # noqa: S101  # it is a pipe
        self._errors: IO[bytes] = errors
        line = errors.readline()
        if b"attached" not in line:
            raise RuntimeError(f"strace could not attach: {line.decode(errors='replace').strip()}")

    def wait(self, timeout_s: float = 30.0) -> None:
        self._process.wait(timeout_s)
        self._errors.close()

    def calls(self) -> Iterator[Call]:
        """What was traced, in order."""
        numbers = Counter[str]()
        for line in self.log.read_text(errors="replace").splitlines():
            if (match := _LINE.match(line)) is not None:
                numbers[match["name"]] += 1
                yield Call(match["name"], numbers[match["name"]], match["rest"])

    def injected(self) -> int:
        """How often the fault came."""
        return self.log.read_text(errors="replace").count("(INJECTED)")
