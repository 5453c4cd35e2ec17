"""`covey-agent doctor`: one line for each thing that a working agent needs, each checked for real."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from covey_agent import keys
from covey_agent.core.state import AgentState
from covey_agent.credentials import Credentials
from covey_agent.errors import AgentError, GatewayError, StepError
from covey_agent.facts import installed_runtimes
from covey_agent.gateway_client import GatewayClient
from covey_agent.gateway_process import run_folder
from covey_agent.identity import Identity, load_identity
from covey_agent.link import tls_context
from covey_agent.power import on_mains
from covey_agent.renewal import read_told
from covey_agent.timezone import zone_name

_TIMEOUT_S = 5.0
_EARLIEST = 1_735_689_600  # 2025-01-01: a clock before that has never been set


class Check(NamedTuple):
    name: str
    ok: bool
    words: str


def examine(state: Path, book: AgentState, *, running: bool, margin: int, reach: bool = True) -> Iterator[Check]:
    """All checks, in the order in which one needs the other. `reach`: also whether the broker answers."""
    identity: Identity | None = None
    try:
        identity = load_identity(state / "identity")
        yield Check("identity", True, f"device {identity.device}, enrolled at {identity.server}")
    except AgentError as error:
        yield Check("identity", False, str(error))
    if identity is not None:
        yield _checked("key", lambda: _key(state / "identity"))
        yield _checked("certificate", lambda: _certificate(state))
        if reach:
            yield _checked("broker", lambda: _broker(identity, state / "identity"))
    yield Check("agent", running, "running" if running else "not running (covey-agent run)")
    yield _checked("gateway", lambda: _gateway(state, book))
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(installed_runtimes().items()))
    yield Check("runtimes", bool(runtimes), runtimes or "none is installed: pip install 'covey-agent[onnxruntime]'")
    yield _checked("disk", lambda: _disk(state, margin))
    yield _checked("clock", lambda: _clock(book))
    yield Check("conditions", True, _conditions(state))


class _Bad(Exception):
    """What a check found."""


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (_Bad, AgentError, OSError, ValueError) as error:
        return Check(name, False, str(error).replace("\n", " "))


def _key(folder: Path) -> str:
    key = Credentials(folder).in_use.key
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        raise _Bad(f"the private key can be read by others (mode {mode:o})")
    return keys.look(key.read_bytes())


def _certificate(state: Path) -> str:
    certificate = Credentials(state / "identity").in_use.read()
    now_ms = time.time_ns() // 1_000_000
    told = read_told(state)
    words = f"; {told.words}" if told.words else ""
    if certificate.has_expired(now_ms):
        day = datetime.datetime.fromtimestamp(certificate.ends_ms / 1000, datetime.timezone.utc)
        raise _Bad(f"expired on {day:%Y-%m-%d}; the agent asks for a new one, which an operator is to approve{words}")
    if certificate.is_ending(now_ms):
        raise _Bad(f"valid for {(certificate.ends_ms - now_ms) // 86_400_000} more days, and not renewed{words}")
    return f"valid for {(certificate.ends_ms - now_ms) // 86_400_000} more days{words}"


def _broker(identity: Identity, folder: Path) -> str:
    host, port = identity.broker.host, identity.broker.port
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
            if identity.broker.tls:
                with tls_context(folder).wrap_socket(connection, server_hostname=host):
                    pass
    except OSError as error:
        raise _Bad(f"{host}:{port} cannot be reached: {error}") from error
    return f"{host}:{port} answers{' over TLS' if identity.broker.tls else ''}"


def _gateway(state: Path, book: AgentState) -> str:
    try:
        status = GatewayClient(run_folder(state) / "gateway.sock").status()
    except (GatewayError, StepError) as error:
        raise _Bad(str(error)) from error
    serving = {slots.model: slots.active for slots in status.models}
    for model, record in book.models.items():
        if record.active is not None and serving.get(model) != record.active:
            raise _Bad(f"{model} does not serve its active build {record.active[:12]}")
    return f"pid {status.pid}, port {status.http_port}, serves {len([one for one in serving.values() if one])} models"


def _conditions(state: Path) -> str:
    """What orders may be waiting for; none of it is a fault."""
    try:
        locked_by = GatewayClient(run_folder(state) / "gateway.sock").status().locked_by
    except (GatewayError, StepError):
        locked_by = ()
    power = "mains power" if on_mains() else "on battery"
    return f"time zone {zone_name()}, {power}, {'locked by ' + ', '.join(locked_by) if locked_by else 'not locked'}"


def _disk(state: Path, margin: int) -> str:
    free = psutil.disk_usage(str(state)).free
    if free < margin:
        raise _Bad(f"{free / 1e6:.0f} MB are free; {margin / 1e6:.0f} MB are to be left")
    return f"{free / 1e6:.0f} MB free"


def _clock(book: AgentState) -> str:
    now = time.time()
    if now < _EARLIEST:
        raise _Bad(
            f"the clock says {datetime.datetime.fromtimestamp(now, datetime.timezone.utc):%Y-%m-%d}: it is not set"
        )
    if now * 1000 < book.time_floor_ms - 300_000:
        raise _Bad(f"the clock is {book.time_floor_ms / 1000 - now:.0f} s behind the newest order")
    return f"{datetime.datetime.fromtimestamp(now, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
