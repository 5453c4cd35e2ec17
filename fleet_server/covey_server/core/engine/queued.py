"""A campaign that waits to be started by itself."""

from __future__ import annotations

from collections.abc import Sequence

from covey_server.core.engine.decisions import Decision, SetState, Wait
from covey_server.core.engine.seen import Observed, Progress
from covey_server.core.engine.states import CampaignState
from covey_server.core.engine.words import approval_by, at, starting


def why_queued(campaign: Progress, rivals: Sequence[str], now_ms: int) -> str | None:
    """Why a campaign that has been started may not run yet; None if it may."""
    schedule = campaign.spec.schedule
    if campaign.spec.approval and not campaign.approved:
        return f"waits for {approval_by(campaign)}"
    if schedule.start is not None and now_ms < schedule.start.ms:
        return f"starts {at(schedule.start.ms)}"
    if rivals:
        return f"waits for {', '.join(rivals[:3])}{' …' if len(rivals) > 3 else ''} to end"
    return None


def leave_queue(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """Start it once nothing speaks against it."""
    schedule = campaign.spec.schedule
    if schedule.end is not None and now_ms >= schedule.end.ms:
        why = f"aborted: its time was over {at(schedule.end.ms)}, before it could start"
        return [SetState(CampaignState.ABORTED, "aborted", why), Wait(why)]
    why_not = why_queued(campaign, observed.rivals, now_ms)
    if why_not is not None:
        return [Wait(f"queued: {why_not}")]
    return [SetState(CampaignState.RUNNING, "started", "started from the queue"), Wait(starting(campaign))]
