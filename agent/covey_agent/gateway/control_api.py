"""What the control process asks of the gateway, over a Unix socket in the agent's run folder: one JSON request a line, one
JSON answer a line (`Failure` or the kind named beside the request).

The gateway keeps nothing on disk: control tells it what to load. It keeps serving while control is away, and on its own goes
back to the previous build in probation; control learns of that by `GetStatus`.
"""

from __future__ import annotations

import msgspec

from covey_contract.messages import BuildWindow, Captured, Probation
from covey_contract.reasons import Reason

MAX_LINE_BYTES = 1 << 20


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Start a runner for a verified build, warm it up and check its golden vectors -> `Loaded`. It does not serve yet.

    `folder` holds the manifest's files under their paths and the manifest's exact bytes as `manifest.json`. Where it does not get ready
    `in_place`, or no `Switch` comes, the build that served is started again.
    """

    model: str
    build: str  # digest
    folder: str
    background: bool = True  # at idle priority, beside a build that serves
    in_place: bool = False  # end the runner that serves first, to have its memory; requests wait until the `Switch`
    timeout_s: float = 120.0
    check_golden: bool = True


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    load_ms: float
    first_ms: float
    rss_mb: float


class Switch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let the loaded build serve from the next request on -> `Done`. The build before stays warm as `previous` until `Settle`, and
    answers what the new one fails. `probation` None: no way back (first start, resume of an active build)."""

    model: str
    build: str
    probation: Probation | None = None


class Settle(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Probation is over: end the previous runner -> `Done`."""

    model: str


class Revert(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let the previous build serve again and end the newer one -> `Done`."""

    model: str
    reason: Reason
    detail: str = ""


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End every runner of the model, or only that of one build -> `Done`. Waiting requests get 503."""

    model: str
    build: str | None = None


class GetStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """-> `GatewayStatus`"""


class Collect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Take what was measured since the last `Collect` -> `Collected`."""


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Finish what is being answered, end the runners and exit -> `Done`."""


Request = Load | Switch | Settle | Revert | Unload | GetStatus | Collect | Shutdown


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    reason: Reason
    detail: str


class RunnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    build: str
    pid: int
    state: str  # "loading", "ready", "serving", "draining"
    rss_mb: float


class Reverted(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway went back by itself from `build` to `to`."""

    build: str
    to: str | None
    reason: Reason
    detail: str
    time_ms: int


class ModelSlots(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    active: str | None
    previous: str | None
    candidate: str | None
    runners: tuple[RunnerStatus, ...]
    in_probation: bool
    probation_requests: int = 0  # answered by the active build since the switch
    reverted: Reverted | None = None  # the newest, until the next `Switch`


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`idle_s`: since the last inference request, 0 while one is being answered. `locked_by`: who holds the device's lock."""

    pid: int
    started_ms: int
    http_port: int
    models: tuple[ModelSlots, ...]
    idle_s: float = 0.0
    locked_by: tuple[str, ...] = ()


class Collected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    start_ms: int
    end_ms: int
    windows: tuple[BuildWindow, ...]
    gateway_rss_mb: float
    runners_rss_mb: float
    capture: Captured | None = None  # None: it is off


Answer = Done | Failure | Loaded | GatewayStatus | Collected
