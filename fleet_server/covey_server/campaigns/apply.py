"""Carrying out the engine's decisions, in the caller's transaction: orders, states, and the log of what was decided and why.

Each decision applies only to rows that it still fits (planned devices get an order, those that have one do not), so that
carrying out the same decisions twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.campaigns import orders
from covey_server.campaigns.admission import admit
from covey_server.campaigns.following import look_at_all
from covey_server.campaigns.orders import ORDERS_A_LOOK
from covey_server.campaigns.repository import (
    APPROVED,
    BREACH_ACCEPTED,
    SOAK_SKIPPED,
    halt_to_restored_s,
    open_tails,
    spec_of,
)
from covey_server.core.engine import (
    ACTIVE,
    AcceptBreach,
    Admit,
    Approve,
    Assign,
    Breach,
    CampaignState,
    Close,
    Decision,
    PassStage,
    Restore,
    Retry,
    SetState,
    SkipSoak,
    StartStage,
    TimeOut,
    Wait,
)
from covey_server.core.gates import Verdict
from covey_server.core.pace import spend
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import Campaign, CampaignDevice, CampaignEvent

ENGINE = "campaign engine"

_ENDED = {CampaignState.DONE, CampaignState.ABORTED, CampaignState.ROLLED_BACK, CampaignState.FAILED}


class Applier:
    """Carries out decisions on one campaign. `ordered` afterwards says whether there are new orders to be sent, `more` whether
    some had to be left for the next look, which finds them still to be given."""

    def __init__(self, session: Session, campaign: Campaign, now_ms: int, who: str = ENGINE) -> None:
        self._session, self._campaign, self._now_ms, self._who = session, campaign, now_ms, who
        self._room = ORDERS_A_LOOK
        self.ordered = self.more = False

    def apply(self, decisions: Sequence[Decision], verdicts: Sequence[Verdict] = ()) -> None:
        """`verdicts` are those that the decisions rest on; they go into the log with what was decided."""
        for decision in decisions:
            self._apply(decision, verdicts)

    def log(self, kind: str, message: str, detail: dict[str, Any] | None = None) -> None:
        """One line in the campaign's log."""
        self._session.add(
            CampaignEvent(
                campaign_id=self._campaign.id,
                at_ms=self._now_ms,
                kind=kind,
                who=self._who,
                message=message,
                detail=detail or {},
            )
        )

    def _apply(self, decision: Decision, verdicts: Sequence[Verdict]) -> None:
        campaign = self._campaign
        match decision:
            case SetState():
                self._set_state(decision)
            case StartStage(stage):
                campaign.stage, campaign.stage_started_ms = stage, self._now_ms
                self.log("stage_started", f"stage {self._stage_name(stage)} started", {"stage": stage})
            case Assign():
                self._assign(decision)
            case Admit(stage):
                self._admit(stage)
            case PassStage(stage, message):
                if stage + 1 < len(self._spec().stages):
                    campaign.stage, campaign.stage_started_ms = stage + 1, None
                evidence = [verdict.to_json() for verdict in verdicts]
                self.log("stage_passed", message, {"stage": stage, "gates": evidence})
            case Breach(stage, verdict):
                tripped = {
                    "stage": self._stage_name(stage),
                    "stage_index": stage,
                    "at_ms": self._now_ms,
                    **verdict.to_json(),
                }
                campaign.verdict = {**(campaign.verdict or {}), "tripped": tripped}
                message = f"{tripped['stage']}: {verdict.gate}: {verdict.summary}"
                self.log("gate_breached", message, {**tripped, "stage": stage})
            case Restore(stages):
                campaign.going_back = None if stages is None else list(stages)
                self._restore(stages)
            case TimeOut(begun_before_ms):
                if late := orders.time_out(self._session, campaign, begun_before_ms):
                    self.log("timed_out", f"{late} devices took too long", {"devices": late})
            case Retry():
                self._retry(decision)
            case Approve(stage):
                what = "the campaign" if stage is None else f"stage {self._stage_name(stage)}"
                self.log(APPROVED, f"{self._who} approves {what}", {"stage": stage})
            case Close(message):
                campaign.is_open, campaign.finished_ms = False, self._now_ms
                self.log("closed", message)
            case AcceptBreach(stage, gate):
                campaign.verdict = {**(campaign.verdict or {}), "tripped": None}
                self.log(
                    BREACH_ACCEPTED,
                    f"{self._who} accepts {gate} in stage {self._stage_name(stage)}",
                    {"stage": stage, "gate": gate},
                )
            case SkipSoak(stage):
                self.log(SOAK_SKIPPED, f"{self._who} skips the rest of the soak", {"stage": stage})
            case Wait(why):
                campaign.waiting_for = why
            case _:
                raise TypeError(f"{decision!r} is not a decision known here")

    def _spec(self) -> CampaignSpec:
        return spec_of(self._campaign)

    def _stage_name(self, stage: int) -> str:
        return self._spec().stages[stage].name

    def _set_state(self, decision: SetState) -> None:
        campaign, state = self._campaign, decision.state
        wakes = state in ACTIVE and CampaignState(campaign.state) not in ACTIVE
        campaign.state, campaign.is_open = state.value, decision.is_open
        if state is CampaignState.RUNNING and campaign.started_ms is None:
            campaign.started_ms = self._now_ms
            if campaign.paced:
                look_at_all(self._session, campaign.id)
        if state is CampaignState.HALTED or (state is CampaignState.ROLLING_BACK and campaign.halted_ms is None):
            campaign.halted_ms = self._now_ms
        if wakes:
            for tail in open_tails(self._session, campaign):
                Applier(self._session, tail, self._now_ms, self._who).apply([Close(f"{campaign.name} takes over")])
        campaign.finished_ms = self._now_ms if state in _ENDED and not decision.is_open else None
        detail: dict[str, Any] = {}
        if state in {CampaignState.ROLLED_BACK, CampaignState.FAILED}:
            last = self._session.scalar(
                select(func.max(CampaignDevice.restored_ms)).where(CampaignDevice.campaign_id == campaign.id)
            )
            detail["halt_to_restored_s"] = halt_to_restored_s(campaign, last)
        if state is CampaignState.ROLLING_BACK:
            orders.try_again(self._session, campaign)
        self.log(decision.event, decision.message, detail)

    # --- orders ---------------------------------------------------------------------------------------------------

    def _assign(self, decision: Assign) -> None:
        """The campaign's version to devices of a stage, as many as there is room for."""
        campaign, bounds = self._campaign, decision.bounds
        if bounds is not None and bounds.meter.issued != (campaign.meter or {}).get("issued", 0):
            return  # decided before orders went out that it does not know of
        given = orders.assign(self._session, campaign, self._spec(), decision, self._room, self._now_ms)
        if bounds is not None:
            campaign.meter = asdict(spend(bounds.meter, given.orders, given.bytes))
        self._note(given)
        if given.devices:
            already, name = given.devices - given.orders, self._stage_name(decision.stage)
            words = f"{given.orders} devices of stage {name} assigned" + (
                f", {already} ran it already" if already else ""
            )
            self.log("assigned", words, {"stage": decision.stage, "devices": given.orders, "already": already})

    def _restore(self, stages: Sequence[int] | None) -> None:
        """Devices that have the campaign's order back to their own previous builds, as many as there is room for."""
        given = orders.restore(self._session, self._campaign, self._spec(), stages, self._room, self._now_ms)
        self._note(given)
        if given.devices:
            words = f"{given.devices} devices go back, {given.waits} of them by an order"
            self.log("restoring", words, {"devices": given.devices})

    def _retry(self, decision: Retry) -> None:
        again = orders.retry(self._session, self._campaign, decision)
        if again:
            pause = max(decision.due_ms - self._now_ms, 0) / 1000
            when = f"in {pause:g} s" if pause else "now"
            self.log("retrying", f"{again} failed devices are tried again {when}", {"devices": again})

    def _admit(self, stage: int) -> None:
        campaign = self._campaign
        campaign.admitted_ms = self._now_ms
        admitted = admit(self._session, campaign, self._spec(), stage)
        if admitted.problem and admitted.problem != self._last_problem():
            self.log("admission_failed", f"nobody can be taken in: {admitted.problem}", {"problem": admitted.problem})
        if admitted.come or admitted.gone:
            words = f"{admitted.come} devices have come to match, {admitted.gone} no longer do"
            self.log("admitted", words, {"stage": stage, "devices": admitted.come, "left_out": admitted.gone})

    def _last_problem(self) -> str | None:
        """Why the last look for newcomers that the log tells of could not be made."""
        newest = (
            select(CampaignEvent)
            .where(
                CampaignEvent.campaign_id == self._campaign.id, CampaignEvent.kind.in_(("admission_failed", "admitted"))
            )
            .order_by(CampaignEvent.id.desc())
            .limit(1)
        )
        event = self._session.scalar(newest)
        return None if event is None else event.detail.get("problem")

    def _note(self, given: orders.Given) -> None:
        self._room -= given.devices
        self.ordered = self.ordered or given.orders > 0
        self.more = self.more or self._room <= 0
