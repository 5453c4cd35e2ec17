"""The build process: `python -m covey_converters.process COMMAND SPEC.json LIMITS PARENT_PID`.

It confines itself before anything heavy is imported (no network where the kernel lets it, no core dumps, dies with its
parent), says its steps on its own pipe, and sends everything that toolchains print to the log. Its exit status is 0 whenever it
could say what happened; anything else means that the toolchain took the process down.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from covey_contract.wire import decode
from covey_converters.spec import BuildSpec, Limits

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1

Say = Callable[[str], None]


def confine(limits: Limits, parent: int) -> None:
    """Limits by the kernel. Called while this process has one thread and has opened nothing of the source."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before this process had asked to die with it.
        raise SystemExit(1)
    for kind, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory_mb * 1_000_000),
        (resource.RLIMIT_FSIZE, limits.file_mb * 1_000_000),
    ):
        _, hard = resource.getrlimit(kind)
        ceiling = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (ceiling, ceiling))
    cut_network(libc)


def cut_network(libc: ctypes.CDLL) -> bool:
    """Enter a network namespace with nothing in it, through a user namespace where that is needed; False if not allowed."""
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        # Unmapped ids look odd, but files stay accessible by the ids outside.
        pass
    return True


def main(command: str, spec_path: str, limits_json: str, parent: str) -> int:
    confine(msgspec.json.decode(limits_json, type=Limits), int(parent))
    os.environ["CI"] = "true"  # opts out of OpenVINO's telemetry
    # Toolchains print wherever they like. The pipe to the parent is ours alone.
    pipe = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(pipe, "w", buffering=1) as answers:
        spec = decode(BuildSpec, Path(spec_path).read_bytes())
        _COMMANDS[command](spec, lambda step: _step(answers.write, step))
    return 0


def _step(write: Callable[[str], object], step: str) -> None:
    sys.stderr.write(f"--- {step}\n")
    sys.stderr.flush()
    write(f"{step}\n")


def _build(spec: BuildSpec, say: Say) -> None:
    from covey_converters.build import build
    from covey_converters.folder import write_report

    write_report(Path(spec.out), build(spec, say))


def _inspect(spec: BuildSpec, say: Say) -> None:
    from covey_converters.inspection import inspect

    inspect(spec, say)


def _verify(spec: BuildSpec, say: Say) -> None:
    from covey_converters.inspection import verify

    verify(spec, say)


_COMMANDS: dict[str, Callable[[BuildSpec, Say], None]] = {"build": _build, "inspect": _inspect, "verify": _verify}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
