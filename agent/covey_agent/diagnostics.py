"""What somebody who looks for a fault wants to see at once: status, checks, facts, processes, disk, versions, ends of the logs.

Nothing secret is in it: no keys, no certificates, no inputs or outputs of models.
"""

from __future__ import annotations

import importlib.metadata
import io
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from covey_agent import __version__
from covey_agent.book import read_state
from covey_agent.daemon import is_running
from covey_agent.doctor import examine
from covey_agent.errors import AgentError, GatewayError, StepError
from covey_agent.facts import measure_facts, read_facts
from covey_agent.gateway_client import GatewayClient
from covey_agent.gateway_process import run_folder
from covey_agent.identity import FACTS
from covey_agent.status import collect_status

LOGS = ("agent.log", "gateway.log")
_PACKAGES = ("cryptography", "httptools", "msgspec", "numpy", "onnxruntime", "openvino", "paho-mqtt", "psutil", "tuf")
_LOG_BYTES = 2_000_000
_INDENT = 2


def collect(state: Path, *, margin: int, reach: bool = True) -> dict[str, Any]:
    """As plain values. `reach`: whether to try out the way to the broker. Never raises for what is broken: that is what it tells."""
    book = read_state(state)
    checks = examine(state, book, running=is_running(state), margin=margin, reach=reach)
    return {
        "agent": __version__,
        "time_ms": time.time_ns() // 1_000_000,
        "checks": [check._asdict() for check in checks],
        "status": _status(state),
        "gateway": _gateway(state),
        "facts": _facts(state),
        "processes": _processes(state),
        "disk": _disk(state),
        "packages": _packages(),
        "models": {name: msgspec.to_builtins(record) for name, record in sorted(book.models.items())},
    }


def archive(state: Path, *, margin: int) -> bytes:
    """A zip file of it all, and of the logs' ends."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        told = msgspec.json.format(msgspec.json.encode(collect(state, margin=margin)), indent=_INDENT)
        made.writestr("diagnostics.json", told)
        for name in LOGS:
            made.writestr(name, _end(state / "log" / name))
    return held.getvalue()


def _end(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read(_LOG_BYTES)
    except OSError as error:
        return f"({error.strerror})\n".encode()


def _status(state: Path) -> dict[str, Any]:
    try:
        return collect_status(state)
    except AgentError as error:
        return {"error": str(error)}


def _gateway(state: Path) -> Any:
    try:
        return msgspec.to_builtins(GatewayClient(run_folder(state) / "gateway.sock").status())
    except (GatewayError, StepError) as error:
        return {"error": str(error)}


def _facts(state: Path) -> Any:
    kept = state / "identity" / FACTS
    try:
        return msgspec.to_builtins(read_facts(kept) if kept.exists() else measure_facts(state))
    except (AgentError, OSError) as error:
        return {"error": str(error)}


def _processes(state: Path) -> list[dict[str, Any]]:
    """The agent's own: those that were started for this folder."""
    marks = {str(state), str(state.resolve()), str(run_folder(state))}
    found = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline", "memory_info", "cpu_times", "create_time", "status"]):
        told = process.info
        words: Sequence[str] = told["cmdline"] or ()
        if not any(word == mark or word.startswith(f"{mark}/") for word in words for mark in marks):
            continue
        memory, cpu = told["memory_info"], told["cpu_times"]
        found.append(
            {
                "pid": told["pid"],
                "parent": told["ppid"],
                "words": " ".join(words)[:500],
                "state": told["status"],
                "rss_mb": round(memory.rss / 1e6, 1) if memory is not None else None,
                "cpu_s": round(cpu.user + cpu.system, 1) if cpu is not None else None,
                "age_s": round(time.time() - told["create_time"]),
            }
        )
    return found


def _disk(state: Path) -> dict[str, Any]:
    """MB, by the folders of the state, and how full what they lie on is."""
    try:
        usage = psutil.disk_usage(str(state))
        folders = {path.name: round(_size(path) / 1e6, 2) for path in sorted(state.iterdir()) if path.is_dir()}
    except OSError as error:
        return {"error": str(error)}
    return {"free_mb": round(usage.free / 1e6), "total_mb": round(usage.total / 1e6), "folders_mb": folders}


def _size(folder: Path) -> int:
    seen: set[int] = set()
    total = 0
    for path in folder.rglob("*"):
        try:
            told = path.lstat()
        except OSError:
            continue  # it has gone meanwhile
        if told.st_ino not in seen:  # a build's files are links to blobs
            seen.add(told.st_ino)
            total += told.st_blocks * 512
    return total


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
