"""The campaign engine: what to do next, from the state of a campaign and what is seen of its devices.

Pure and deterministic: no clock, no database, no randomness. Decisions name sets ("the planned devices of stage 1"), never
device by device, so that a campaign over many devices costs little; whoever applies them does so in one transaction and only
where they still hold, so that applying them twice does nothing twice.

Invariants, held by property tests: only a running campaign hands out its version, and only to devices of stages that have
started; a campaign that is going back hands out previous builds only; one that has ended hands out nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from covey_server.core.gates import StageEvidence, Verdict, judge_installs
from covey_server.core.spec import CampaignSpec


class CampaignState(enum.StrEnum):
    """PAUSED goes on when told to. HALTED only goes back or is aborted. FAILED: going back left devices on the wrong build."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"


# May have orders on their way, so that no other campaign may touch their devices and model.
ACTIVE = frozenset({CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.HALTED, CampaignState.ROLLING_BACK})


class DeviceState(enum.StrEnum):
    """A device's part in a campaign. SKIPPED: left out, taken over by a later order of someone else, or never reached before
    the campaign went back. RESTORED_LOCALLY: had gone back by itself before the campaign did."""

    PLANNED = "planned"
    ASSIGNED = "assigned"
    ACTIVE = "active"
    FAILED = "failed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    RESTORED_LOCALLY = "restored_locally"
    SKIPPED = "skipped"


class Action(enum.StrEnum):
    """What people may tell a campaign."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"
    SKIP_SOAK = "skip-soak"


# --- what is seen -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """The campaign itself, as it was last written."""

    spec: CampaignSpec
    state: CampaignState
    stage: int = 0
    stage_started: bool = False
    soak_skipped: bool = False  # of this stage, by a person
    accepted: frozenset[tuple[int, str]] = frozenset()  # stages and their gates whose breach a person accepted


@dataclass(frozen=True)
class StageCounts:
    """The devices of one stage. `present` ones are connected, or were a moment ago."""

    planned: int = 0  # have no order yet
    silent: int = 0  # present, have an order, have not said a word of it
    busy: int = 0  # present, at work on their order
    away: int = 0  # have an order and are off
    active: int = 0
    already: int = 0  # those of them that ran the version before the campaign came
    failed: int = 0

    @property
    def total(self) -> int:
        return self.planned + self.silent + self.busy + self.away + self.active + self.failed


@dataclass(frozen=True)
class RestoreCounts:
    """The devices of a campaign that is going back."""

    to_order: int = 0  # have the campaign's order and none to go back yet
    restoring: int = 0  # present, or not away for long
    away: int = 0
    restored: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Observed:
    """What the database shows: counts per stage, the verdicts on the present stage, when its last device became active."""

    stages: tuple[StageCounts, ...]
    verdicts: tuple[Verdict, ...] = ()
    settled_ms: int | None = None
    restore: RestoreCounts = RestoreCounts()


# --- what is decided ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """One thing to do. Those that are nothing but a step in the log carry its words."""


@dataclass(frozen=True)
class SetState(Decision):
    state: CampaignState
    event: str
    message: str


@dataclass(frozen=True)
class StartStage(Decision):
    stage: int


@dataclass(frozen=True)
class Assign(Decision):
    """The version to the stage's devices that have no order yet."""

    stage: int


@dataclass(frozen=True)
class PassStage(Decision):
    stage: int
    message: str


@dataclass(frozen=True)
class Breach(Decision):
    """A gate tripped; what follows from it stands in the decisions after it."""

    stage: int
    verdict: Verdict


@dataclass(frozen=True)
class Restore(Decision):
    """Each device that has the campaign's order back to its own previous build."""


@dataclass(frozen=True)
class AcceptBreach(Decision):
    stage: int
    gate: str


@dataclass(frozen=True)
class SkipSoak(Decision):
    stage: int


@dataclass(frozen=True)
class Wait(Decision):
    """Nothing more for now: why, in one sentence."""

    why: str


def decide(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    """What to do now, in order."""
    if campaign.state is CampaignState.RUNNING:
        return _advance(campaign, observed, now_ms)
    if campaign.state is CampaignState.PAUSED:
        return _guard(campaign, observed)
    if campaign.state is CampaignState.ROLLING_BACK:
        return _go_back(observed.restore)
    return []


# --- running ------------------------------------------------------------------------------------------------------


def _advance(campaign: Progress, observed: Observed, now_ms: int) -> list[Decision]:
    if breach := _first_breach(campaign, observed):
        return [breach, *_on_breach(campaign, breach)]
    if not campaign.stage_started:
        return [StartStage(campaign.stage), Assign(campaign.stage), Wait(_starting(campaign))]
    late: list[Decision] = [Assign(stage) for stage in range(campaign.stage + 1) if observed.stages[stage].planned]
    reasons = _reasons_to_wait(campaign, observed, now_ms)
    if late or reasons:
        stage = campaign.spec.stages[campaign.stage].name
        return [*late, Wait(f"{stage}: {'; '.join([_active(observed.stages[campaign.stage]), *reasons])}")]
    return _pass(campaign, observed)


def _pass(campaign: Progress, observed: Observed) -> list[Decision]:
    here, stages = campaign.stage, campaign.spec.stages
    counts = observed.stages[here]
    words = "is empty" if counts.total == 0 else f"passed: {_active(counts)}"
    passed = PassStage(here, f"stage {stages[here].name} {words}")
    if here + 1 < len(stages):
        onward = Progress(campaign.spec, campaign.state, stage=here + 1)
        return [passed, StartStage(here + 1), Assign(here + 1), Wait(_starting(onward))]
    done = _done(observed.stages)
    return [passed, SetState(CampaignState.DONE, "done", done), Wait(done)]


def _done(stages: Sequence[StageCounts]) -> str:
    active, total = sum(each.active for each in stages), sum(each.total for each in stages)
    words = f"done: {active} of {total} devices active"
    away, failed = sum(each.silent + each.busy + each.away for each in stages), sum(each.failed for each in stages)
    return words + (f", {away} to catch up" if away else "") + (f", {failed} failed" if failed else "")


def _starting(campaign: Progress) -> str:
    return f"{campaign.spec.stages[campaign.stage].name}: orders are going out"


def _active(counts: StageCounts) -> str:
    return f"{counts.active} of {counts.total} active"


def _reasons_to_wait(campaign: Progress, observed: Observed, now_ms: int) -> list[str]:
    """Why the present stage may not pass yet; empty if it may."""
    counts = observed.stages[campaign.stage]
    if counts.total == 0:
        return []
    reasons = []
    if counts.planned:
        reasons.append(f"{counts.planned} to be assigned")
    if counts.busy or counts.silent:
        reasons.append(f"{counts.busy + counts.silent} in progress")
    needed = math.ceil(round(campaign.spec.min_reached * counts.total, 6))
    finished = counts.active + counts.failed
    if finished < needed:
        off = f" ({counts.away} off)" if counts.away else ""
        reasons.append(f"{finished} of at least {needed} reached{off}")
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


# --- breaches -----------------------------------------------------------------------------------------------------


def _first_breach(campaign: Progress, observed: Observed) -> Breach | None:
    """Of the present stage by any gate; of those that have passed by install failures, which late devices may still bring."""
    if campaign.stage_started:
        for verdict in observed.verdicts:
            if verdict.status == "breached" and (campaign.stage, verdict.gate) not in campaign.accepted:
                return Breach(campaign.stage, verdict)
    for index, counts in enumerate(observed.stages[: campaign.stage]):
        verdict = judge_installs(campaign.spec.gates.install_failures, StageEvidence(counts.total, counts.failed))
        if verdict.status == "breached" and (index, verdict.gate) not in campaign.accepted:
            return Breach(index, verdict)
    return None


def _on_breach(campaign: Progress, breach: Breach) -> list[Decision]:
    stage = campaign.spec.stages[breach.stage].name
    why = f"{stage}: {breach.verdict.gate}: {breach.verdict.summary}"
    if campaign.spec.on_breach == "pause":
        return [SetState(CampaignState.PAUSED, "paused", f"paused: {why}"), Wait(f"paused: {why}")]
    if campaign.spec.on_breach == "halt":
        return [SetState(CampaignState.HALTED, "halted", f"halted: {why}"), Wait(f"halted: {why}; roll back or abort")]
    return [
        SetState(CampaignState.ROLLING_BACK, "rolling_back", f"going back: {why}"),
        Restore(),
        Wait(f"going back: {why}"),
    ]


def _guard(campaign: Progress, observed: Observed) -> list[Decision]:
    """A paused campaign hands out nothing, but does not leave its devices on a version that turns out bad."""
    breach = _first_breach(campaign, observed)
    if breach is None or campaign.spec.on_breach == "pause":
        return []
    return [breach, *_on_breach(campaign, breach)]


# --- going back ---------------------------------------------------------------------------------------------------


def _go_back(restore: RestoreCounts) -> list[Decision]:
    """Each device to its own previous build. One that has been off for a while keeps its order and does not hold up the rest."""
    total = restore.restored + restore.restoring + restore.away + restore.failed
    words = f"{restore.restored} of {total} devices restored"
    if restore.to_order:
        return [Restore(), Wait(f"going back: {restore.to_order} to be re-assigned; {words}")]
    if restore.restoring:
        return [Wait(f"going back: {words}")]
    if restore.failed:
        words += f", {restore.failed} could not go back"
    if restore.away:
        words += f", {restore.away} off; their order waits for them"
    state = CampaignState.FAILED if restore.failed else CampaignState.ROLLED_BACK
    return [SetState(state, state.value, words), Wait(f"{state.value.replace('_', ' ')}: {words}")]


# --- what people say ----------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """The campaign is in no state to do that."""


_S = CampaignState
# For each action: from which states it leads on, and in which it has already been done.
_TAKES = {
    Action.START: ({_S.PLANNED}, {_S.RUNNING}),
    Action.PAUSE: ({_S.RUNNING}, {_S.PAUSED}),
    Action.RESUME: ({_S.PAUSED}, {_S.RUNNING}),
    Action.ABORT: ({_S.PLANNED, _S.RUNNING, _S.PAUSED, _S.HALTED}, {_S.ABORTED}),
    Action.ROLLBACK: (
        {_S.RUNNING, _S.PAUSED, _S.HALTED, _S.ABORTED, _S.DONE, _S.FAILED},
        {_S.ROLLING_BACK, _S.ROLLED_BACK},
    ),
    Action.SKIP_SOAK: ({_S.RUNNING, _S.PAUSED}, set()),
}


def command(campaign: Progress, action: Action, who: str, breached: Sequence[tuple[int, str]] = ()) -> list[Decision]:
    """What a person's word leads to; nothing if it has been done already. `breached`: stage and gate that paused the
    campaign; to resume is to accept that. Raises `RefusedError`."""
    takes, already = _TAKES[action]
    state = campaign.state
    if state in already:
        return []
    if state not in takes:
        raise RefusedError(
            f"a campaign that is {state.value.replace('_', ' ')} cannot {action.value.replace('-', ' ')}"
        )
    name = campaign.spec.stages[campaign.stage].name
    if action is Action.SKIP_SOAK:
        return [] if campaign.soak_skipped else [SkipSoak(campaign.stage)]
    if action is Action.START:
        return [SetState(_S.RUNNING, "started", f"started by {who}"), Wait(_starting(campaign))]
    if action is Action.PAUSE:
        return [
            SetState(_S.PAUSED, "paused", f"paused by {who} in stage {name}"),
            Wait(f"paused by {who} in stage {name}"),
        ]
    if action is Action.RESUME:
        accepted = [AcceptBreach(stage, gate) for stage, gate in breached]
        return [*accepted, SetState(_S.RUNNING, "resumed", f"resumed by {who}"), Wait(f"{name}: resumed by {who}")]
    if action is Action.ABORT:
        return [
            SetState(_S.ABORTED, "aborted", f"aborted by {who}"),
            Wait(f"aborted by {who}: devices keep what they run"),
        ]
    why = f"going back: told so by {who}"
    return [SetState(_S.ROLLING_BACK, "rolling_back", why), Restore(), Wait(why)]
