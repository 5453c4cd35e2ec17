"""What the gateway is told at its start, and the limits that keep callers from taking the device's memory or time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from covey_agent.gateway.budget import Budgets


@dataclass(frozen=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    connections: int = 256  # TCP and Unix socket together
    header_bytes: int = 32 * 1024  # request line and all header lines
    body_bytes: int = 64 << 20
    buffered_bytes: int = 256 << 20  # bodies of all connections together
    read_s: float = 30.0  # from a request's first byte to its last
    idle_s: float = 300.0  # between two requests of one connection
    write_s: float = 30.0  # for a caller to take its answer
    queue: int = 64  # waiting requests of one model
    deadline_s: float = 10.0  # of a request that names none
    hang_s: float = 30.0  # an inference that takes longer means that its runner hangs
    switch_s: float = 10.0  # for control to let a build serve that was loaded in another's place
    retire_s: float = 3.0  # for a runner to end by itself once its socket is closed
    control_connections: int = 16


@dataclass(frozen=True)
class Sampling:
    """What is kept of requests and their answers (`capture`). `share`: of the answered requests, 0..1; `limit_bytes`: of all samples."""

    folder: Path
    share: float
    limit_bytes: int


@dataclass(frozen=True)
class Settings:
    run_dir: Path
    host: str = "127.0.0.1"
    port: int = 8600  # 0: any free one
    socket: Path | None = None  # where applications find the Unix socket; None: `inference.sock` in the run folder
    threads: int = 1  # of each runner
    budgets: Budgets = field(default_factory=Budgets)  # of the models' runners
    capture: Sampling | None = None  # None: nothing is kept
    limits: Limits = field(default_factory=Limits)
