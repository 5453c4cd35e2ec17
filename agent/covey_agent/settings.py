"""Everything about a running agent that can be set, with its defaults. Read once by the command line, then passed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from covey_agent.core.swap import SwapMode
from covey_agent.fetch import FetchLimits


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes."""

    state: Path
    inference_port: int = 8090  # 0: any free one
    inference_socket: Path | None = None  # None: in the run folder, for this user alone
    facts_file: Path | None = None  # of a simulated device
    telemetry_interval_s: float = 10.0
    heartbeat_s: float = 30.0
    quota: int | None = None  # for all builds together
    margin: int = 64_000_000  # of the disk, never used
    load_timeout_s: float = 120.0
    swap: SwapMode = SwapMode.AUTO
    budgets: tuple[str, ...] = ()  # of the models' runners, as `gateway.budget` reads them
    capture_share: float = 0.0  # of the requests, kept with their answers; 0: none
    capture_mb: int = 200  # of all that is kept
    capture_send: bool = False  # whether the server may fetch what is kept
    memory_margin_mb: float = 64.0  # to be left when two builds are loaded side by side
    max_starts: int = 3  # of one build under one order
    retry_first_s: float = 30.0
    retry_most_s: float = 900.0
    poll_starting_s: float = 0.05  # while there is none
    poll_busy_s: float = 0.25  # the gateway's status, while something is on its way
    poll_idle_s: float = 2.0
    scrub_every_s: float = (
        86_400.0  # so often every file of the builds in the slots is read and compared with its digest
    )
    fetch: FetchLimits = field(default_factory=FetchLimits)

    @property
    def identity(self) -> Path:
        return self.state / "identity"

    @property
    def captured(self) -> Path:
        return self.state / "capture"

    @property
    def log_file(self) -> Path:
        return self.state / "log" / "agent.log"

    @property
    def gateway_log(self) -> Path:
        return self.state / "log" / "gateway.log"
