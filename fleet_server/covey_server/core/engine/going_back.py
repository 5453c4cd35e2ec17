"""A campaign that goes back: each device to its own previous build."""

from __future__ import annotations

from covey_server.core.engine.decisions import Decision, Restore, SetState, Wait
from covey_server.core.engine.seen import Progress, RestoreCounts
from covey_server.core.engine.states import CampaignState


def go_back(campaign: Progress, restore: RestoreCounts) -> list[Decision]:
    """A device that has been off for a while keeps its order and does not hold up the rest. Where some stages alone go back,
    the campaign then stands halted."""
    total = restore.restored + restore.restoring + restore.away + restore.failed
    words = f"{restore.restored} of {total} devices restored"
    if restore.to_order:
        again = Restore(campaign.going_back)
        return [again, Wait(f"going back: {restore.to_order} to be re-assigned; {words}")]
    if restore.restoring:
        return [Wait(f"going back: {words}")]
    if restore.failed:
        words += f", {restore.failed} could not go back"
    if restore.away:
        words += f", {restore.away} off; their order waits for them"
    if campaign.going_back is not None:
        names = ", ".join(campaign.spec.stages[stage].name for stage in campaign.going_back)
        why = f"halted: {names} went back: {words}; roll back the rest or abort"
        return [SetState(CampaignState.HALTED, "stage_rolled_back", f"{names} went back: {words}"), Wait(why)]
    state = CampaignState.FAILED if restore.failed else CampaignState.ROLLED_BACK
    return [SetState(state, state.value, words), Wait(f"{state.value.replace('_', ' ')}: {words}")]
