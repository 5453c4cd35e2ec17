"""What can be set of the fleet's side of the server, with defaults that suit one machine and some thousand devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DeliveryLimits:
    """How fast blocks may leave. Bytes are payload bytes; requests beyond `outstanding_blocks` are dropped and asked again."""

    device_bytes_per_s: float = 16e6
    total_bytes_per_s: float = 100e6
    outstanding_blocks: int = 64


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """`broker_url` None: the server starts a broker of its own. `broker_port` None: a free port, chosen once and kept."""

    data: Path
    public_host: str = "127.0.0.1"  # where devices reach this machine
    bind: str = "127.0.0.1"  # the interface the broker listens on
    broker_url: str | None = None  # mqtts://HOST:PORT or mqtt://HOST:PORT
    broker_port: int | None = None
    mosquitto: str | None = None  # path of the program; None: found on PATH or in /usr/sbin
    heartbeat_timeout_s: float = 90.0
    tick_s: float = 1.0
    delivery: DeliveryLimits = DeliveryLimits()
