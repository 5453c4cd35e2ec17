"""What people do with campaigns: create one, clone it, approve, start, pause, resume, abort, roll back, skip a soak, try failed
devices again, close it. Audited, and idempotent: what has been done already is done, what the campaign's state does not allow is
refused with the reason."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server import audit
from covey_server.audit import Actor
from covey_server.campaigns.apply import Applier
from covey_server.campaigns.planning import LEFT_OUT, insert_parts, prepare
from covey_server.campaigns.repository import progress_of, rivals_of
from covey_server.campaigns.target import Locate
from covey_server.core.engine import ACTIVE, Action, CampaignState, OwnApprovalError, Progress, RefusedError, command
from covey_server.core.spec import CampaignSpec, read_spec, renamed, spec_to_json
from covey_server.db.tables import Campaign
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound
from covey_server.people.roles import Role, may

# These lead on to orders, so that no other campaign may be under way with the model on the same devices.
_ORDERS = frozenset({Action.START, Action.RESUME, Action.ROLLBACK, Action.RETRY})


def create(
    session: Session, spec: CampaignSpec, source: str, seed: int, locate: Locate, actor: Actor, now_ms: int
) -> Campaign:
    """A planned campaign: every device of the target with its build and stage, or with why it is left out.

    Raises `DocumentError` (see `prepare`), `Conflict` if the name is taken, `Invalid` if no device gets anything, `Forbidden` if
    the actor may not roll out this model.
    """
    actor.check_model(spec.model)
    if session.scalar(select(Campaign.id).where(Campaign.name == spec.name)) is not None:
        raise Conflict(f"there is a campaign named {spec.name} already", code="name_taken")
    prepared = prepare(session, spec, seed, locate)
    devices = prepared.devices()
    if not devices and not spec.is_live:
        raise Invalid("; ".join(prepared.warnings), field="target", code="nothing_to_do")
    campaign = Campaign(
        name=spec.name,
        model=spec.model,
        version_id=prepared.version.id,
        spec={**spec_to_json(prepared.spec), "seed": seed},
        source=source,
        state=CampaignState.PLANNED.value,
        stage=0,
        paced=spec.is_paced,
        waiting_for="approval, and to be started" if spec.approval else "to be started",
        created_ms=now_ms,
        created_by=actor.name,
    )
    session.add(campaign)
    session.flush()
    insert_parts(session, campaign.id, prepared)
    Applier(session, campaign, now_ms, actor.name).log(
        "created",
        f"planned by {actor.name}: {devices} devices in {len(prepared.spec.stages)} stages",
        {"seed": seed, "left_out": prepared.devices(LEFT_OUT), "warnings": list(prepared.warnings)},
    )
    audit.record(session, actor, "campaign.create", spec.name, {"model": spec.model, "version": spec.version}, now_ms)
    return campaign


def clone(
    session: Session, name: str, new_name: str, version: str | None, seed: int, actor: Actor, now_ms: int
) -> Campaign:
    """A planned campaign from the file of another, under another name and, if given, for another version. It is planned anew, for
    the devices that there are now. Raises `NotFound`, and as `create`."""
    source = session.scalar(select(Campaign.source).where(Campaign.name == name))
    if source is None:
        raise NotFound(f"there is no campaign {name}")
    text = renamed(source, new_name, version)
    spec, document = read_spec(text)
    made = create(session, spec, text, seed if spec.seed is None else spec.seed, document.error, actor, now_ms)
    Applier(session, made, now_ms, actor.name).log("cloned", f"from {name} by {actor.name}", {"from": name})
    audit.record(session, actor, "campaign.clone", new_name, {"from": name}, now_ms)
    return made


def act(session: Session, name: str, action: Action, actor: Actor, now_ms: int, stage: str | None = None) -> bool:
    """Tell a campaign something, where it can be said of one stage, of that; whether there are new orders to be sent. Raises
    `NotFound`, `Invalid` for a stage that it does not have, `Conflict`, or `Forbidden` for whoever may not say that."""
    needed: Role = "approver" if action is Action.APPROVE else "operator"
    if not may(actor.role, needed):
        raise Forbidden(f"this needs the role {needed}; {actor.name} has the role {actor.role}")
    campaign = session.scalar(select(Campaign).where(Campaign.name == name).with_for_update())
    if campaign is None:
        raise NotFound(f"there is no campaign {name}")
    actor.check_model(campaign.model)
    progress = progress_of(session, campaign)
    tripped = (campaign.verdict or {}).get("tripped")
    breached = (
        ((tripped["stage_index"], tripped["gate"]),) if tripped and progress.state is CampaignState.PAUSED else ()
    )
    others = rivals_of(session, campaign) if progress.state not in ACTIVE and action in _ORDERS else ()
    index = _index_of(progress.spec, action, stage)
    try:
        decisions = command(progress, action, actor.name, breached, stage=index, now_ms=now_ms, rivals=others)
    except OwnApprovalError as error:
        raise Forbidden(str(error), code="own_campaign") from error
    except RefusedError as error:
        raise Conflict(str(error), code="wrong_state", state=campaign.state) from error
    if not decisions:
        return False
    if others and not _may_wait(progress, action):
        detail = f"{others[0]} is under way with {campaign.model} on devices of {campaign.name}"
        raise Conflict(detail, code="campaigns_overlap", campaigns=list(others))
    applier = Applier(session, campaign, now_ms, actor.name)
    applier.apply(decisions)
    said = {"was": progress.state.value, **({} if stage is None else {"stage": stage})}
    audit.record(session, actor, f"campaign.{action.value}", name, said, now_ms)
    session.flush()
    return applier.ordered


def _may_wait(progress: Progress, action: Action) -> bool:
    """Whether the campaign may be queued behind its rivals."""
    return action is Action.START and progress.spec.conflict == "queue"


def _index_of(spec: CampaignSpec, action: Action, stage: str | None) -> int | None:
    if stage is None:
        return None
    if action not in {Action.APPROVE, Action.ROLLBACK, Action.RETRY}:
        raise Invalid(f"{action.value} is said of a whole campaign", field="stage")
    for index, each in enumerate(spec.stages):
        if each.name == stage:
            return index
    raise Invalid(f"there is no stage {stage}", field="stage")
