"""How devices keep their certificates: who shows that it has the key of one gets the next; after its end an operator decides."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from covey_contract.enrolment import RenewRequest, RenewResponse
from covey_contract.wire import decode
from covey_server.api.devices import Body, Operator, Viewer
from covey_server.api.enrol import body_of, fleet_of, waits
from covey_server.api.paging import Page
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, TooMany, Unauthorized
from covey_server.fleet import renewal
from covey_server.fleet.directory import renewal_view
from covey_server.fleet.renewal import Waits
from covey_server.fleet.service import FleetService
from covey_server.fleet.views import RenewalView
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["devices"])


class Decision(Body):
    decision: Literal["approve", "refuse"]
    key: str | None = Field(
        default=None,
        min_length=8,
        max_length=64,
        pattern="^[0-9a-f]*$",
        description="how the key begins; needed where several ask for the device, or one that was decided on is decided on again",
    )


@router.post(
    "/renew",
    summary="Follow a device's certificate by one on a new key",
    description="No login: the request is signed by the key of the certificate. While that is good, the answer is 200 and the next one; "
    "after its end it is 202 until an operator has approved the new key. EST's `simplereenroll` does the first for who shows the "
    "certificate in the TLS handshake. Not more often than `enrol_per_minute` from one address.",
    responses=responses(Invalid, Forbidden, TooLarge, TooMany)
    | {200: {"description": "The certificate"}, 202: {"description": "An operator is to approve"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["certificate_pem", "csr_pem", "proof"],
                        "properties": {
                            "certificate_pem": {"type": "string", "description": "the one it has, expired or not"},
                            "csr_pem": {"type": "string", "description": "a P-256 certificate request in PEM"},
                            "proof": {
                                "type": "string",
                                "format": "byte",
                                "description": "base64 of ECDSA with SHA-256 by the certificate's key over `covey renewal 1`, a zero "
                                "byte, and the SHA-256 digests of both texts",
                            },
                        },
                    }
                }
            },
        }
    },
)
def renew(
    request: Request,
    fleet: Annotated[FleetService, Depends(fleet_of)],
    body: Annotated[bytes, Depends(body_of)],
) -> Response:
    origin = request.client.host if request.client else "unknown"
    fleet.admit(origin)
    came = fleet.come_back(decode(RenewRequest, body), f"renew {origin}")
    if isinstance(came, Waits):
        return waits(came)
    answer = RenewResponse(certificate_pem=came.certificate.pem)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.get(
    "/renewals",
    summary="Which devices wait for an operator to approve their key",
    responses=responses(Unauthorized, Forbidden),
)
def get_renewals(use: Use, _: Viewer) -> Page[RenewalView]:
    """The first to ask first; at most 200."""
    with use.database.reading() as session:
        return Page(items=[renewal_view(one) for one in renewal.waiting(session)], next=None)


@router.post(
    "/devices/{device}/renewal",
    summary="Approve or refuse the key that asks for a device's certificate",
    responses=responses(Unauthorized, Forbidden, NotFound, Conflict),
)
def decide_renewal(use: Use, device: str, body: Decision, actor: Operator) -> RenewalView:
    state = renewal.APPROVED if body.decision == "approve" else renewal.REFUSED
    with use.database.session() as session:
        view = renewal_view(renewal.decide(session, device, body.key, state, actor, use.clock()))
    use.bus.publish("device", device)
    return view
