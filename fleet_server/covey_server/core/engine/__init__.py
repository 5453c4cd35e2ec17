"""The campaign engine: what to do next, from the state of a campaign and what is seen of its devices.

Pure and deterministic: no clock, no database, no randomness. Decisions name sets ("the planned devices of stage 1, at most
40"), never device by device, so that a campaign over a million devices costs no more than one over ten; whoever applies them
does so in one transaction and only where they still hold, so that applying them twice does nothing twice.

Invariants, held by property tests: only a running campaign, or one that is done and open, hands out its version, and only to
devices of stages that have started; never more than the pace's devices are in flight; a campaign that is going back hands out
previous builds only; one that is halted or has ended hands out nothing.
"""

from __future__ import annotations

from covey_server.core.engine.commands import OwnApprovalError, RefusedError, command
from covey_server.core.engine.decisions import (
    AcceptBreach,
    Admit,
    Approve,
    Assign,
    Breach,
    Close,
    Decision,
    HandOut,
    PassStage,
    Restore,
    Retry,
    SetState,
    SkipSoak,
    StartStage,
    TimeOut,
    Wait,
)
from covey_server.core.engine.going_back import go_back
from covey_server.core.engine.queued import leave_queue
from covey_server.core.engine.running import advance, guard, tend_tail
from covey_server.core.engine.seen import Observed, Progress, RestoreCounts, StageCounts
from covey_server.core.engine.states import ACTIVE, Action, CampaignState, DeviceState
from covey_server.core.spec.values import MAX_DURATION_MS

__all__ = [
    "ACTIVE",
    "AcceptBreach",
    "Action",
    "Admit",
    "Approve",
    "Assign",
    "Breach",
    "CampaignState",
    "Close",
    "Decision",
    "DeviceState",
    "HandOut",
    "Observed",
    "OwnApprovalError",
    "PassStage",
    "Progress",
    "RefusedError",
    "Restore",
    "RestoreCounts",
    "Retry",
    "SetState",
    "SkipSoak",
    "StageCounts",
    "StartStage",
    "TimeOut",
    "Wait",
    "command",
    "decide",
    "upkeep",
]


def decide(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """What to do now, in order."""
    match campaign.state:
        case CampaignState.QUEUED:
            return leave_queue(campaign, observed, now_ms)
        case CampaignState.RUNNING:
            return advance(campaign, observed, now_ms)
        case CampaignState.PAUSED:
            return guard(campaign, observed)
        case CampaignState.ROLLING_BACK:
            return go_back(campaign, observed.restore)
        case CampaignState.DONE if campaign.is_open:
            return tend_tail(campaign, observed, now_ms)
    return []


def upkeep(campaign: Progress, now_ms: int) -> list[Decision]:
    """What becomes of single devices before they are counted: too long at work, and failed but to be tried again."""
    is_open = campaign.state is CampaignState.DONE and campaign.is_open
    if campaign.state not in {CampaignState.RUNNING, CampaignState.PAUSED} and not is_open:
        return []
    spec, retry = campaign.spec, campaign.spec.retry
    overdue: list[Decision] = [] if spec.timeout is None else [TimeOut(now_ms - spec.timeout.ms)]
    pauses = [min(round(retry.after.ms * retry.factor**tried), MAX_DURATION_MS) for tried in range(retry.times)]
    return [*overdue, *(Retry(tried + 1, now_ms + pause, retry.causes) for tried, pause in enumerate(pauses))]
