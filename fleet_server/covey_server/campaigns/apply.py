"""Carrying out the engine's decisions, in the caller's transaction: orders, states, and the log of what was decided and why.

Each decision applies only to rows that it still fits (planned devices get an order, those that have one do not), so that
carrying out the same decisions twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.campaigns import orders
from covey_server.campaigns.orders import ORDERS_A_LOOK
from covey_server.campaigns.repository import BREACH_ACCEPTED, SOAK_SKIPPED, halt_to_restored_s, spec_of
from covey_server.core.engine import (
    AcceptBreach,
    Assign,
    Breach,
    CampaignState,
    Decision,
    PassStage,
    Restore,
    SetState,
    SkipSoak,
    StartStage,
    Wait,
)
from covey_server.core.gates import Verdict
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
            case Assign(stage):
                self._assign(stage)
            case PassStage(stage, message):
                campaign.stage_started_ms = None
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
            case Restore():
                self._restore()
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
        campaign.state = state.value
        if state is CampaignState.RUNNING and campaign.started_ms is None:
            campaign.started_ms = self._now_ms
        if state is CampaignState.HALTED or (state is CampaignState.ROLLING_BACK and campaign.halted_ms is None):
            campaign.halted_ms = self._now_ms
        campaign.finished_ms = self._now_ms if state in _ENDED else None
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

    def _assign(self, stage: int) -> None:
        """The campaign's version to the planned devices of a stage, as many as there is room for."""
        given = orders.assign(self._session, self._campaign, self._spec(), stage, self._room, self._now_ms)
        self._note(given)
        if given.devices:
            already = given.devices - given.orders
            words = f"{given.orders} devices of stage {self._stage_name(stage)} assigned" + (
                f", {already} ran it already" if already else ""
            )
            self.log("assigned", words, {"stage": stage, "devices": given.orders, "already": already})

    def _restore(self) -> None:
        """Devices that have the campaign's order back to their own previous builds, as many as there is room for."""
        given = orders.restore(self._session, self._campaign, self._spec(), self._room, self._now_ms)
        self._note(given)
        if given.devices:
            words = f"{given.devices} devices go back, {given.waits} of them by an order"
            self.log("restoring", words, {"devices": given.devices})

    def _note(self, given: orders.Given) -> None:
        self._room -= given.devices
        self.ordered = self.ordered or given.orders > 0
        self.more = self.more or self._room <= 0
