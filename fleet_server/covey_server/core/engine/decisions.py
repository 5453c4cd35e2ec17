"""What the engine decides. Each decision names a set of devices or a word about the campaign; whoever carries it out does so
only where it still holds, so that carrying it out twice does nothing twice."""

from __future__ import annotations

from dataclasses import dataclass

from covey_server.core.engine.states import CampaignState
from covey_server.core.gates import Verdict
from covey_server.core.pace import Meter
from covey_server.core.spec import Failure


@dataclass(frozen=True)
class Decision:
    """One thing to do. Those that are nothing but a step in the log carry its words."""


@dataclass(frozen=True)
class SetState(Decision):
    """`is_open`: done, and devices that come later are still served."""

    state: CampaignState
    event: str
    message: str
    is_open: bool = False


@dataclass(frozen=True)
class StartStage(Decision):
    stage: int


@dataclass(frozen=True)
class HandOut(Decision):
    """How much of an `Assign` may go out: to `limit` devices, connected ones of these `zones` (None: all), the first by the
    draw. `meter` is the one to be spent from; the decision no longer holds once more orders have gone out than it says."""

    limit: int | None
    zones: frozenset[str] | None
    meter: Meter


@dataclass(frozen=True)
class Assign(Decision):
    """The version to the stage's devices that have no order yet, and to those whose next try is due. `bounds` None: to all."""

    stage: int
    bounds: HandOut | None = None


@dataclass(frozen=True)
class Admit(Decision):
    """Devices that have come to match are taken in, into this stage or a later one; planned ones that no longer match are left
    out."""

    stage: int


@dataclass(frozen=True)
class PassStage(Decision):
    """The next stage becomes the present one, not yet started; after the last one that remains, started."""

    stage: int
    message: str


@dataclass(frozen=True)
class Breach(Decision):
    """A gate tripped; what follows from it stands in the decisions after it."""

    stage: int
    verdict: Verdict


@dataclass(frozen=True)
class Restore(Decision):
    """Each device of these stages (None: of all) that has the campaign's order back to its own previous build."""

    stages: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Approve(Decision):
    """The campaign (`stage` None), or one of its stages, may start."""

    stage: int | None


@dataclass(frozen=True)
class AcceptBreach(Decision):
    stage: int
    gate: str


@dataclass(frozen=True)
class SkipSoak(Decision):
    stage: int


@dataclass(frozen=True)
class Close(Decision):
    """A campaign that is done takes in no more devices."""

    message: str


@dataclass(frozen=True)
class TimeOut(Decision):
    """Devices at work on their order since before that have failed: `covey_contract.reasons.Reason.TIMED_OUT`."""

    begun_before_ms: int


@dataclass(frozen=True)
class Retry(Decision):
    """Failed devices that have had `attempts` orders get another one at `due_ms`. `on`: if they failed in one of these ways;
    None: in any. `stage` None: of any."""

    attempts: int | None
    due_ms: int
    on: tuple[Failure, ...] | None = None
    stage: int | None = None


@dataclass(frozen=True)
class Wait(Decision):
    """Nothing more for now: why, in one sentence."""

    why: str
