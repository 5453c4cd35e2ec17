"""What a device runs, as its own files and its gateway tell it: for `covey-agent status`, in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from covey_agent.book import read_state
from covey_agent.core.state import ModelRecord
from covey_agent.credentials import Credentials
from covey_agent.daemon import is_running
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import GatewayStatus
from covey_agent.gateway_client import GatewayClient
from covey_agent.gateway_process import run_folder
from covey_agent.identity import FACTS, load_identity
from covey_agent.renewal import read_told
from covey_agent.store import Store


class _Told(msgspec.Struct):
    """`control.json`."""

    connected: bool = False


def collect_status(state: Path) -> dict[str, Any]:
    """Raises `NotEnrolledError`; whatever else is missing is told as such."""
    identity = load_identity(state / "identity")
    running = is_running(state)
    gateway: GatewayStatus | None
    try:
        gateway = GatewayClient(run_folder(state) / "gateway.sock").status()
    except (GatewayError, StepError):
        gateway = None
    try:
        told = msgspec.json.decode((state / "control.json").read_bytes(), type=_Told)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        told = _Told()
    book = read_state(state)
    return {
        "device": identity.device,
        "simulated": (state / "identity" / FACTS).exists(),
        "server": identity.server,
        "broker": f"{identity.broker.host}:{identity.broker.port}",
        "running": running,
        "connected": running and told.connected,
        "certificate": _certificate(state),
        "counter": book.counter,
        "gateway": {"pid": gateway.pid, "port": gateway.http_port} if gateway else None,
        "models": [_model(name, record, Store(state), gateway) for name, record in sorted(book.models.items())],
    }


def _certificate(state: Path) -> dict[str, Any]:
    told = read_told(state)
    try:
        ends_ms = Credentials(state / "identity").in_use.read().ends_ms
    except (OSError, ValueError):
        ends_ms = None
    return {"ends_ms": ends_ms, "standing": told.standing, "words": told.words}


def _model(name: str, record: ModelRecord, store: Store, gateway: GatewayStatus | None) -> dict[str, Any]:
    manifest = store.manifest(record.active) if record.active else None
    slots = next((slots for slots in (gateway.models if gateway else ()) if slots.model == name), None)
    deployment = record.deployment
    return {
        "model": name,
        "version": manifest.version if manifest else None,
        "target": manifest.target if manifest else None,
        "active": record.active,
        "previous": record.previous,
        "serving": slots.active if slots else None,
        "assigned": deployment.order.version if deployment else None,
        "state": deployment.state if deployment else None,
        "reason": deployment.reason if deployment else None,
        "detail": deployment.detail if deployment else None,
        "pinned": record.pinned,
    }
