"""What people do with campaigns: create one, start it, pause, resume, abort, roll back, skip a soak. Audited, and idempotent:
what has been done already is done, what the campaign's state does not allow is refused with the reason."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server import audit
from covey_server.audit import Actor
from covey_server.campaigns.apply import Applier
from covey_server.campaigns.planning import LEFT_OUT, Locate, insert_parts, prepare
from covey_server.campaigns.repository import progress_of, rivals
from covey_server.core.engine import ACTIVE, Action, CampaignState, RefusedError, command
from covey_server.core.spec import CampaignSpec, spec_to_json
from covey_server.db.tables import Campaign, Model
from covey_server.errors import Conflict, Invalid, NotFound


def create(
    session: Session, spec: CampaignSpec, source: str, seed: int, locate: Locate, actor: Actor, now_ms: int
) -> Campaign:
    """A planned campaign: every device of the target with its build and stage, or with why it is left out.

    Raises `DocumentError` (see `prepare`), `Conflict` if the name is taken, `Invalid` if no device gets anything.
    """
    if session.scalar(select(Campaign.id).where(Campaign.name == spec.name)) is not None:
        raise Conflict(f"there is a campaign named {spec.name} already", code="name_taken")
    prepared = prepare(session, spec, seed, locate)
    devices = prepared.devices()
    if not devices:
        raise Invalid("; ".join(prepared.warnings), field="target", code="nothing_to_do")
    campaign = Campaign(
        name=spec.name,
        model=spec.model,
        version_id=prepared.version.id,
        spec={**spec_to_json(spec), "seed": seed},
        source=source,
        state=CampaignState.PLANNED.value,
        stage=0,
        waiting_for="to be started",
        created_ms=now_ms,
        created_by=actor.name,
    )
    session.add(campaign)
    session.flush()
    insert_parts(session, campaign.id, prepared)
    Applier(session, campaign, now_ms, actor.name).log(
        "created",
        f"planned by {actor.name}: {devices} devices in {len(spec.stages)} stages",
        {"seed": seed, "left_out": prepared.devices(LEFT_OUT), "warnings": list(prepared.warnings)},
    )
    audit.record(session, actor, "campaign.create", spec.name, {"model": spec.model, "version": spec.version}, now_ms)
    return campaign


def act(session: Session, name: str, action: Action, actor: Actor, now_ms: int) -> bool:
    """Tell a campaign something; whether there are new orders to be sent. Raises `NotFound` or `Conflict`."""
    campaign = session.scalar(select(Campaign).where(Campaign.name == name).with_for_update())
    if campaign is None:
        raise NotFound(f"there is no campaign {name}")
    progress = progress_of(session, campaign)
    tripped = (campaign.verdict or {}).get("tripped")
    breached = (
        ((tripped["stage_index"], tripped["gate"]),) if tripped and progress.state is CampaignState.PAUSED else ()
    )
    try:
        decisions = command(progress, action, actor.name, breached)
    except RefusedError as error:
        raise Conflict(str(error), code="wrong_state", state=campaign.state) from error
    if not decisions:
        return False
    if progress.state not in ACTIVE and action is not Action.ABORT:
        _refuse_rivals(session, campaign)
    applier = Applier(session, campaign, now_ms, actor.name)
    applier.apply(decisions)
    audit.record(session, actor, f"campaign.{action.value}", name, {"was": progress.state.value}, now_ms)
    session.flush()
    return applier.ordered


def _refuse_rivals(session: Session, campaign: Campaign) -> None:
    """Two campaigns never mix on one device and model. The model's row is locked, so that two cannot start at once."""
    session.execute(select(Model.name).where(Model.name == campaign.model).with_for_update())
    others = rivals(session, campaign)
    if others:
        detail = f"{others[0]} is under way with {campaign.model} on devices of {campaign.name}"
        raise Conflict(detail, code="campaigns_overlap", campaigns=others)
