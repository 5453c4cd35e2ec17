"""What a person's word leads to: allowed in some states, done already in others, refused in the rest."""

from __future__ import annotations

from collections.abc import Sequence

from covey_server.core.engine.decisions import (
    AcceptBreach,
    Approve,
    Close,
    Decision,
    Restore,
    Retry,
    SetState,
    SkipSoak,
    Wait,
)
from covey_server.core.engine.queued import why_queued
from covey_server.core.engine.running import why_not_yet
from covey_server.core.engine.seen import Progress
from covey_server.core.engine.states import Action, CampaignState
from covey_server.core.engine.words import approval_by, starting


class RefusedError(Exception):
    """The campaign is in no state to do that."""


class OwnApprovalError(RefusedError):
    """Whoever made a campaign cannot be the one who approves it."""


_S = CampaignState
# For each action: from which states it leads on, and in which it has already been done.
_TAKES = {
    Action.START: ({_S.PLANNED}, {_S.QUEUED, _S.RUNNING}),
    Action.APPROVE: ({_S.PLANNED, _S.QUEUED, _S.RUNNING, _S.PAUSED}, set()),
    Action.PAUSE: ({_S.RUNNING}, {_S.PAUSED}),
    Action.RESUME: ({_S.PAUSED}, {_S.RUNNING}),
    Action.ABORT: ({_S.PLANNED, _S.QUEUED, _S.RUNNING, _S.PAUSED, _S.HALTED}, {_S.ABORTED}),
    Action.CLOSE: ({_S.DONE}, set()),
    Action.ROLLBACK: (
        {_S.RUNNING, _S.PAUSED, _S.HALTED, _S.ABORTED, _S.DONE, _S.FAILED, _S.ROLLING_BACK},
        {_S.ROLLED_BACK},
    ),
    Action.SKIP_SOAK: ({_S.RUNNING, _S.PAUSED}, set()),
    Action.RETRY: ({_S.RUNNING, _S.PAUSED, _S.DONE}, set()),
}


def command(
    campaign: Progress,
    action: Action,
    who: str,
    breached: Sequence[tuple[int, str]] = (),
    *,
    stage: int | None = None,
    now_ms: int = 0,
    rivals: Sequence[str] = (),
) -> list[Decision]:
    """What a person's word leads to; nothing if it has been done already. `breached`: stage and gate that paused the
    campaign; to resume is to accept that. `stage`: the one that approval, rollback or retry is about; None: all, or the one
    that waits. `rivals`: campaigns that a start has to wait for. Raises `RefusedError`."""
    takes, already = _TAKES[action]
    if campaign.state in already:
        return []
    if campaign.state not in takes:
        is_so, wanted = campaign.state.value.replace("_", " "), action.value.replace("-", " ")
        raise RefusedError(f"a campaign that is {is_so} cannot {wanted}")
    match action:
        case Action.START:
            return _start(campaign, who, now_ms, rivals)
        case Action.APPROVE:
            return _approve(campaign, who, stage, now_ms)
        case Action.ROLLBACK:
            return _roll_back(campaign, who, stage)
        case Action.RETRY:
            return _retry(campaign, who, stage, now_ms)
        case Action.SKIP_SOAK:
            return [] if campaign.soak_skipped else [SkipSoak(campaign.stage)]
        case Action.CLOSE:
            return [Close(f"closed by {who}")] if campaign.is_open else []
        case Action.PAUSE:
            why = f"paused by {who} in stage {campaign.spec.stages[campaign.stage].name}"
            return [SetState(_S.PAUSED, "paused", why), Wait(why)]
        case Action.RESUME:
            accepted = [AcceptBreach(index, gate) for index, gate in breached]
            name = campaign.spec.stages[campaign.stage].name
            return [*accepted, SetState(_S.RUNNING, "resumed", f"resumed by {who}"), Wait(f"{name}: resumed by {who}")]
        case Action.ABORT:
            why = f"aborted by {who}"
            return [SetState(_S.ABORTED, "aborted", why), Wait(f"{why}: devices keep what they run")]


def _start(campaign: Progress, who: str, now_ms: int, rivals: Sequence[str]) -> list[Decision]:
    why = why_queued(campaign, rivals, now_ms)
    if why is not None:
        return [SetState(_S.QUEUED, "queued", f"started by {who}; {why}"), Wait(f"queued: {why}")]
    return [SetState(_S.RUNNING, "started", f"started by {who}"), Wait(starting(campaign))]


def _approve(campaign: Progress, who: str, stage: int | None, now_ms: int) -> list[Decision]:
    if stage is None and not (campaign.spec.approval and not campaign.approved):
        in_stage = campaign.state in {_S.RUNNING, _S.PAUSED} and not campaign.stage_started
        waits = in_stage and why_not_yet(campaign, now_ms) == f"waits for {approval_by(campaign)}"
        if not waits:
            if campaign.approved or campaign.approved_stages:
                return []
            raise RefusedError("nothing of the campaign waits for approval")
        stage = campaign.stage
    elif stage is not None and not campaign.spec.stages[stage].approval:
        raise RefusedError(f"stage {campaign.spec.stages[stage].name} needs no approval")
    if stage is not None and stage in campaign.approved_stages:
        return []
    if campaign.author and who == campaign.author:
        raise OwnApprovalError(f"{who} made the campaign; somebody else has to approve it")
    return [Approve(stage)]


def _roll_back(campaign: Progress, who: str, stage: int | None) -> list[Decision]:
    scope = campaign.going_back
    if campaign.state is _S.ROLLING_BACK and scope is None:
        return []
    if stage is None:
        stages = None
    else:
        gone = scope if campaign.state in {_S.ROLLING_BACK, _S.HALTED} and scope is not None else ()
        if stage in gone:
            return []
        if stage > campaign.stage or (stage == campaign.stage and not campaign.stage_started):
            raise RefusedError(f"stage {campaign.spec.stages[stage].name} has not started")
        stages = tuple(sorted({*gone, stage}))
    what = "" if stages is None else " with " + ", ".join(campaign.spec.stages[each].name for each in stages)
    why = f"going back{what}: told so by {who}"
    return [SetState(_S.ROLLING_BACK, "rolling_back", why), Restore(stages), Wait(why)]


def _retry(campaign: Progress, who: str, stage: int | None, now_ms: int) -> list[Decision]:
    again: list[Decision] = [Retry(None, now_ms, None, stage)]
    if campaign.state is _S.DONE and not campaign.is_open:
        again.append(SetState(_S.DONE, "reopened", f"{who} has failed devices tried again", is_open=True))
    return again
