"""Claim tokens: one-time rights to enrol a device."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from covey_server import audit
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.errors import Forbidden, Invalid, Unauthorized, Unavailable
from covey_server.fleet.enrolment import MAX_TTL_S, new_claim_token
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["devices"], responses=responses(Unauthorized, Forbidden))


class NewClaimToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(
        default=None, max_length=64, description="bind the token to this id; only so can a known device enrol again"
    )
    labels: dict[str, str] = Field(default_factory=dict, max_length=64, examples=[{"line": "a"}])
    groups: list[str] = Field(default_factory=list, max_length=64, description="fixed groups it will be put into")
    ttl_s: int | None = Field(default=None, ge=1, le=MAX_TTL_S, description="default: the setting claim_token_s")


class ClaimTokenView(BaseModel):
    token: str = Field(description="give it to the device; it is never shown again and works once")
    expires_ms: int


@router.post("/claim-tokens", summary="Let a device in, once", status_code=201, responses=responses(Invalid))
def create_claim_token(
    use: Use, body: NewClaimToken, actor: Annotated[Actor, Depends(require("operator"))]
) -> ClaimTokenView:
    if use.fleet is None:
        raise Unavailable("the fleet service does not run")
    now_ms = use.clock()
    with use.database.session() as session:
        made = new_claim_token(
            session,
            use.fleet.ca,
            device=body.device,
            labels=body.labels,
            groups=body.groups,
            ttl_s=body.ttl_s or use.settings.claim_token_s,
            created_by=actor.name,
            now_ms=now_ms,
        )
        detail = {"labels": body.labels, "groups": body.groups, "expires_ms": made.expires_ms}
        audit.record(session, actor, "claim_token.create", body.device or "", detail, now_ms)
    return ClaimTokenView(token=made.token, expires_ms=made.expires_ms)
