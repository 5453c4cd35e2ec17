"""Carrying out the engine's decisions, in the caller's transaction: orders, states, and the log of what was decided and why.

Each decision applies only to rows that it still fits (planned devices get an order, those that have one do not), so that
carrying out the same decisions twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session, aliased

from covey_contract.lifecycle import BAD
from covey_contract.reasons import Reason
from covey_server.campaigns.repository import BREACH_ACCEPTED, SOAK_SKIPPED, serves_previous, spec_of
from covey_server.core.engine import (
    AcceptBreach,
    Assign,
    Breach,
    CampaignState,
    Decision,
    DeviceState,
    PassStage,
    Restore,
    SetState,
    SkipSoak,
    StartStage,
    Wait,
)
from covey_server.core.gates import Verdict
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignDevice,
    CampaignEvent,
    Desired,
    Device,
    Reported,
)
from covey_server.fleet.assignments import ISSUED, NewOrder, action_of, issue
from covey_server.fleet.sql import table_of

ENGINE = "campaign engine"

_BAD = frozenset(str(state) for state in BAD)
_ENDED = {CampaignState.DONE, CampaignState.ABORTED, CampaignState.ROLLED_BACK, CampaignState.FAILED}


class Applier:
    """Carries out decisions on one campaign. `ordered` afterwards says whether there are new orders to be sent."""

    def __init__(self, session: Session, campaign: Campaign, now_ms: int, who: str = ENGINE) -> None:
        self._session, self._campaign, self._now_ms, self._who = session, campaign, now_ms, who
        self.ordered = False

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
            detail["halt_to_restored_s"] = halt_to_restored_s(self._session, campaign)
        self.log(decision.event, decision.message, detail)

    # --- orders ---------------------------------------------------------------------------------------------------

    def _assign(self, stage: int) -> None:
        """The campaign's version to the planned devices of a stage. One that runs and wants that very build already counts
        as active at once; the others' present builds are noted, to go back to."""
        campaign, part = self._campaign, CampaignDevice
        new, running = aliased(Build), aliased(Build)
        rows = self._session.execute(
            select(
                part.device,
                part.build_id,
                part.why,
                Reported.active,
                new.digest,
                running.id.label("running_id"),
                AssignmentRow.build_id.label("wanted_id"),
                AssignmentRow.state.label("wanted_state"),
                AssignmentRow.why.label("wanted_why"),
            )
            .select_from(part)
            .join(new, new.id == part.build_id)
            .outerjoin(Reported, (Reported.device == part.device) & (Reported.model == campaign.model))
            .outerjoin(running, running.digest == Reported.active)
            .outerjoin(Desired, (Desired.device == part.device) & (Desired.model == campaign.model))
            .outerjoin(AssignmentRow, AssignmentRow.id == Desired.assignment)
            .where(part.campaign_id == campaign.id, part.stage == stage, part.state == DeviceState.PLANNED.value)
            .order_by(part.device)
        ).all()
        spec = self._spec()
        probation = msgspec.to_builtins(spec.probation)
        orders, parts = [], []
        for row in rows:
            wanted = _wanted(row.wanted_id, row.wanted_state, row.wanted_why)
            runs_it = row.active is not None and row.active == row.digest
            if runs_it and wanted in {None, row.build_id}:
                parts.append(self._part(row.device, DeviceState.ACTIVE, row.build_id, "runs this build already"))
                continue
            previous = row.running_id if wanted in {None, row.build_id} else wanted
            parts.append(self._part(row.device, DeviceState.ASSIGNED, previous, ""))
            orders.append(
                NewOrder(
                    device=row.device,
                    model=campaign.model,
                    version_id=campaign.version_id,
                    build_id=row.build_id,
                    kind="rollout",
                    campaign_id=campaign.id,
                    why=row.why,
                    probation=probation,
                    ttl_ms=spec.assignment_ttl.ms,
                )
            )
        self._issue(orders, parts)
        if rows:
            name, already = self._stage_name(stage), len(rows) - len(orders)
            words = f"{len(orders)} devices of stage {name} assigned" + (
                f", {already} ran it already" if already else ""
            )
            self.log("assigned", words, {"stage": stage, "devices": len(orders), "already": already})

    def _part(self, device: str, state: DeviceState, previous: int | None, detail: str) -> dict[str, Any]:
        active_ms = self._now_ms if state is DeviceState.ACTIVE else None
        return {
            "b_device": device,
            "state": state.value,
            "previous_build_id": previous,
            "detail": detail,
            "assigned_ms": self._now_ms,
            "active_ms": active_ms,
        }

    def _restore(self) -> None:
        """Every device that has the campaign's order back to its own previous build (or to none, where it had none). Devices
        that never heard of the order are re-assigned too, so that they catch up to the right build, but nobody waits for them."""
        campaign, part, previous = self._campaign, CampaignDevice, aliased(Build)
        has_order = (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED)
        rows = self._session.execute(
            select(
                part.device,
                part.state,
                part.build_id,
                part.previous_build_id,
                previous.version_id,
                AssignmentRow.state.label("order_state"),
                Device.online,
                serves_previous(campaign.model).label("serves_previous"),
                select(Reported.updated_ms)
                .where(Reported.device == part.device, Reported.model == campaign.model)
                .scalar_subquery()
                .label("told_ms"),
            )
            .select_from(part)
            .join(Device, Device.id == part.device)
            .join(AssignmentRow, AssignmentRow.id == part.assignment)
            .outerjoin(previous, previous.id == part.previous_build_id)
            .where(part.campaign_id == campaign.id, part.state.in_([state.value for state in has_order]))
            .order_by(part.device)
        ).all()
        spec = self._spec()
        orders, parts = [], []
        for row in rows:
            state, detail, restored_ms = DeviceState.ROLLING_BACK, "", None
            if row.state == DeviceState.FAILED and row.order_state in _BAD and row.serves_previous:
                state, detail = DeviceState.RESTORED_LOCALLY, "had gone back by itself"
                restored_ms = max(row.told_ms or 0, campaign.halted_ms or 0)
            elif row.order_state == ISSUED and not row.online:
                state, detail = DeviceState.SKIPPED, "never heard of it; its build before is assigned again"
            parts.append({"b_device": row.device, "state": state.value, "detail": detail, "restored_ms": restored_ms})
            orders.append(
                NewOrder(
                    device=row.device,
                    model=campaign.model,
                    version_id=row.version_id or campaign.version_id,
                    build_id=row.previous_build_id or row.build_id,
                    kind="rollback",
                    campaign_id=campaign.id,
                    why={"reason": Reason.ROLLED_BACK.value, "campaign": campaign.name},
                    # It ran this build before; another round of probation could only take it to the bad one again.
                    probation={"seconds": 0.0},
                    action="run" if row.previous_build_id is not None else "remove",
                    ttl_ms=spec.assignment_ttl.ms,
                )
            )
        self._issue(orders, parts)
        if rows:
            waits = sum(1 for each in parts if each["state"] == DeviceState.ROLLING_BACK)
            self.log("restoring", f"{len(rows)} devices go back, {waits} of them by an order", {"devices": len(rows)})

    def _issue(self, orders: Sequence[NewOrder], parts: Sequence[dict[str, Any]]) -> None:
        """Issue the orders and write the devices' parts, with the orders' ids."""
        ids = dict(zip((order.device for order in orders), issue(self._session, orders, self._now_ms), strict=True))
        self.ordered = self.ordered or bool(ids)
        if not parts:
            return
        columns = table_of(CampaignDevice).c
        names = [name for name in parts[0] if not name.startswith("b_")]
        self._session.execute(
            update(table_of(CampaignDevice))
            .where(columns.campaign_id == self._campaign.id, columns.device == bindparam("b_device"))
            .values({name: bindparam(name) for name in names} | {"assignment": bindparam("b_assignment")}),
            [
                {
                    **{name: part[name] for name in names},
                    "b_device": part["b_device"],
                    "b_assignment": ids.get(part["b_device"]),
                }
                for part in parts
            ],
        )


def _wanted(build_id: int | None, state: str | None, why: dict[str, Any] | None) -> int | None:
    """The build that the device is meant to run before the campaign; None if there is none, or it could not take it."""
    if build_id is None or state in _BAD or action_of(why or {}) == "remove":
        return None
    return build_id


def halt_to_restored_s(session: Session, campaign: Campaign) -> float | None:
    """Seconds from the halt to the last device restored; None if no device is, or nothing was halted."""
    last = session.scalar(select(func.max(CampaignDevice.restored_ms)).where(CampaignDevice.campaign_id == campaign.id))
    if last is None or campaign.halted_ms is None:
        return None
    return max(last - campaign.halted_ms, 0) / 1000
