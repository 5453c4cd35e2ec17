"""A campaign that runs, or is done and open: starting stages, handing out, passing, breaches."""

from __future__ import annotations

import math

from covey_server.core.engine.decisions import (
    Admit,
    Breach,
    Close,
    Decision,
    PassStage,
    Restore,
    SetState,
    StartStage,
    Wait,
)
from covey_server.core.engine.handout import Handing, hand_out
from covey_server.core.engine.seen import Observed, Progress
from covey_server.core.engine.states import CampaignState
from covey_server.core.engine.words import active, approval_by, at, ended, not_reached, starting
from covey_server.core.gates import Verdict, judge_installs_of

# What a person accepts, as if it were a gate's breach, so that it does not stop the same stage again.
RETRIES = "retries"
SCHEDULE = "schedule"
# How often a live campaign looks for devices that have come to match: it costs a query over the fleet.
ADMIT_EVERY_MS = 30_000


def advance(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """What a running campaign does."""
    if (over := _over(campaign, now_ms)) is not None:
        return over
    if breach := first_breach(campaign, observed):
        return [breach, *on_breach(campaign, breach)]
    if (asked := _ask_a_person(campaign, observed)) is not None:
        return asked
    admitted = _admit(campaign, now_ms)
    if not campaign.stage_started:
        return [*admitted, *_begin(campaign, observed, now_ms)]
    handing = hand_out(campaign, observed, now_ms, range(campaign.stage + 1), campaign.stage)
    reasons = _reasons_to_wait(campaign, observed, handing, now_ms)
    if handing.orders or reasons:
        name = campaign.spec.stages[campaign.stage].name
        why = "; ".join([active(observed.stages[campaign.stage]), *reasons])
        return [*admitted, *handing.orders, Wait(f"{name}: {why}")]
    return [*admitted, *_pass(campaign, observed, now_ms)]


def tend_tail(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """What a campaign that is done and open does: devices that come late get their orders, and stop it if they fail."""
    if breach := first_breach(campaign, observed):
        return [breach, *on_breach(campaign, breach)]
    last = len(campaign.spec.stages) - 1
    handing = hand_out(campaign, observed, now_ms, range(last + 1), last)
    words = ended(observed.stages)
    left = any(each.planned or each.retrying or each.in_flight or each.unserved for each in observed.stages)
    if not campaign.spec.is_live and not left:
        return [Close("every device has had its order"), Wait(words)]
    why = f"{words}; open for devices that come later" if campaign.spec.is_live else words
    return [*_admit(campaign, now_ms), *handing.orders, Wait(why)]


def guard(campaign: Progress, observed: Observed) -> list[Decision]:
    """A paused campaign hands out nothing, but does not leave its devices on a version that turns out bad."""
    breach = first_breach(campaign, observed)
    if breach is None or campaign.spec.breach.action == "pause":
        return []
    return [breach, *on_breach(campaign, breach)]


# --- stages -------------------------------------------------------------------------------------------------------


def why_not_yet(campaign: Progress, now_ms: int) -> str | None:
    """Why the present stage may not start; None if it may."""
    stage = campaign.spec.stages[campaign.stage]
    if stage.approval and campaign.stage not in campaign.approved_stages:
        return f"waits for {approval_by(campaign)}"
    if stage.not_before is not None and now_ms < stage.not_before.ms:
        return f"starts {at(stage.not_before.ms)}"
    return None


def _begin(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """Start the present stage, or say why not; devices of earlier stages get their orders meanwhile."""
    here = campaign.stage
    why = why_not_yet(campaign, now_ms)
    started = range(here + 1) if why is None else range(here)
    handing = hand_out(campaign, observed, now_ms, started, here)
    if why is not None:
        return [*handing.orders, Wait(f"{campaign.spec.stages[here].name}: {why}")]
    return [StartStage(here), *handing.orders, Wait(starting(campaign))]


def _pass(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    here, stages = campaign.stage, campaign.spec.stages
    counts = observed.stages[here]
    words = "is empty" if counts.total == 0 else f"passed: {active(counts)}"
    passed = PassStage(here, f"stage {stages[here].name} {words}")
    if here + 1 < len(stages):
        onward = Progress(
            campaign.spec,
            campaign.state,
            stage=here + 1,
            author=campaign.author,
            approved_stages=campaign.approved_stages,
            meter=campaign.meter,
        )
        return [passed, *_begin(onward, observed, now_ms)]
    done = ended(observed.stages)
    left = any(each.planned or each.retrying for each in observed.stages)
    return [passed, SetState(CampaignState.DONE, "done", done, is_open=campaign.spec.is_live or left), Wait(done)]


def _reasons_to_wait(campaign: Progress, observed: Observed, handing: Handing, now_ms: int) -> list[str]:
    """Why the present stage may not pass yet; empty if it may."""
    counts = observed.stages[campaign.stage]
    if counts.total == 0:
        return []
    reasons = [handing.to_assign] if handing.to_assign else []
    if counts.busy or counts.silent:
        reasons.append(f"{counts.busy + counts.silent} in progress")
    if counts.unserved:
        reasons.append(f"{counts.unserved} to answer a request")
    needed = math.ceil(round(campaign.spec.min_reached_of(campaign.stage) * counts.total, 6))
    finished = counts.served + counts.failed
    if finished < needed:
        reasons.append(f"{finished} of at least {needed} reached{not_reached(counts)}")
        reasons += [handing.closed] if handing.closed else []
    reasons += [
        f"{each.gate} has {each.summary}"
        for each in observed.verdicts
        if each.status == "no_evidence" and (campaign.stage, each.gate) not in campaign.accepted
    ]
    if (left := _soak_left_ms(campaign, observed, now_ms)) > 0:
        reasons.append(f"soak {math.ceil(left / 1000)} s left")
    return reasons


def _soak_left_ms(campaign: Progress, observed: Observed, now_ms: int) -> int:
    """The soak counts from when the last device of the stage became active; where none has, all of it is left."""
    soak = campaign.spec.stages[campaign.stage].soak.ms
    if campaign.soak_skipped or soak == 0:
        return 0
    if observed.settled_ms is None:
        return soak
    return min(observed.settled_ms + soak - now_ms, soak)


def _admit(campaign: Progress, now_ms: int) -> list[Decision]:
    if not campaign.spec.is_live:
        return []
    # Also when the clock was set back to before the last look.
    if campaign.admitted_ms is not None and 0 <= now_ms - campaign.admitted_ms < ADMIT_EVERY_MS:
        return []
    return [Admit(campaign.stage)]


# --- what stops it ------------------------------------------------------------------------------------------------


def first_breach(campaign: Progress, observed: Observed) -> Breach | None:
    """Of the present stage by any gate; of those that have passed by install failures, which late devices may still bring."""
    if campaign.stage_started:
        for verdict in observed.verdicts:
            if verdict.status == "breached" and (campaign.stage, verdict.gate) not in campaign.accepted:
                return Breach(campaign.stage, verdict)
    passed = len(observed.stages) if campaign.state is CampaignState.DONE else campaign.stage
    for index, counts in enumerate(observed.stages[:passed]):
        verdict = judge_installs_of(campaign.spec.gates_of(index), counts.evidence())
        if verdict.status == "breached" and (index, verdict.gate) not in campaign.accepted:
            return Breach(index, verdict)
    return None


def on_breach(campaign: Progress, breach: Breach) -> list[Decision]:
    """What the file says of a breach."""
    stage, policy = campaign.spec.stages[breach.stage].name, campaign.spec.breach
    why = f"{stage}: {breach.verdict.gate}: {breach.verdict.summary}"
    if policy.action == "pause":
        return [SetState(CampaignState.PAUSED, "paused", f"paused: {why}"), Wait(f"paused: {why}")]
    if policy.action == "halt":
        return [SetState(CampaignState.HALTED, "halted", f"halted: {why}"), Wait(f"halted: {why}; roll back or abort")]
    return [
        SetState(CampaignState.ROLLING_BACK, "rolling_back", f"going back: {why}"),
        Restore((breach.stage,) if policy.scope == "stage" else None),
        Wait(f"going back: {why}"),
    ]


def _ask_a_person(campaign: Progress, observed: Observed) -> list[Decision] | None:
    """A device that failed every time stops the campaign, where the file says that a person is to look at it."""
    if campaign.spec.retry.then != "person":
        return None
    tries = campaign.spec.retry.times + 1
    for index, counts in enumerate(observed.stages[: campaign.stage + 1]):
        if counts.failed and (index, RETRIES) not in campaign.accepted:
            words = f"{counts.failed} failed {'once' if tries == 1 else f'{tries} times'}; a person is to look at it"
            verdict = Verdict(RETRIES, "breached", words, {"devices": counts.total, "failures": counts.failed})
            why = f"paused: {campaign.spec.stages[index].name}: {words}"
            return [Breach(index, verdict), SetState(CampaignState.PAUSED, "paused", why), Wait(why)]
    return None


def _over(campaign: Progress, now_ms: int) -> list[Decision] | None:
    """What follows once the campaign's time is over; None while it is not."""
    schedule = campaign.spec.schedule
    if schedule.end is None or now_ms < schedule.end.ms or (campaign.stage, SCHEDULE) in campaign.accepted:
        return None
    words = f"its time was over {at(schedule.end.ms)}"
    if schedule.at_end == "abort":
        return [SetState(CampaignState.ABORTED, "aborted", f"aborted: {words}"), Wait(f"aborted: {words}")]
    if schedule.at_end == "rollback":
        why = f"going back: {words}"
        return [SetState(CampaignState.ROLLING_BACK, "rolling_back", why), Restore(), Wait(why)]
    verdict = Verdict(SCHEDULE, "breached", words, {})
    why = f"paused: {words}"
    return [Breach(campaign.stage, verdict), SetState(CampaignState.PAUSED, "paused", why), Wait(why)]
