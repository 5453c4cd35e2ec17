"""How a device joins: the certificate of the fleet's authority, and enrolment with a claim token. Neither needs a login."""

from __future__ import annotations

from typing import Annotated

import msgspec
from cryptography import x509
from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from covey_contract.enrolment import EnrolRequest
from covey_contract.wire import decode
from covey_server.errors import Conflict, Forbidden, Invalid, TooLarge, TooMany, Unavailable
from covey_server.fleet.renewal import Waits
from covey_server.fleet.service import FleetService
from covey_server.peer_certificate import SCOPE_KEY
from covey_server.problems import MEDIA_TYPE, responses
from covey_server.services import Use

# A device that waits for people asks again after its own pause; this is for others.
RETRY_AFTER_S = 300

router = APIRouter(prefix="/api/v1", tags=["devices"])


def fleet_of(use: Use) -> FleetService:
    if use.fleet is None:
        raise Unavailable("the fleet service does not run")
    return use.fleet


async def body_of(request: Request) -> bytes:
    """The raw body, no larger than an enrolment may be."""
    held = bytearray()
    async for piece in request.stream():
        held += piece
        if len(held) > EnrolRequest.MAX_BYTES:
            raise TooLarge(f"an enrolment has at most {EnrolRequest.MAX_BYTES} bytes")
    return bytes(held)


def waits(found: Waits) -> JSONResponse:
    """202: an operator is to decide."""
    body = {
        "type": "urn:covey:problem:approval_needed",
        "title": "Waiting for an operator",
        "status": 202,
        "detail": found.words,
        "code": "approval_needed",
        "key": found.key,
    }
    return JSONResponse(body, 202, {"Retry-After": str(RETRY_AFTER_S)}, MEDIA_TYPE)


@router.get("/ca", summary="The certificate of the fleet's authority, in PEM", response_class=Response)
def get_ca(fleet: Annotated[FleetService, Depends(fleet_of)]) -> Response:
    return Response(fleet.ca_pem, media_type="application/x-pem-file")


@router.post(
    "/enrol",
    summary="Join the fleet with a claim token",
    description="The device gets its id, its certificate, the broker's address and the keys it is to trust. "
    "The secret is the last part of the claim token; it is empty where a factory's certificate is shown in the TLS handshake (setting "
    "`bootstrap_ca`): then a device that has enrolled before gets 202 until an operator has approved its key. Not more often than `enrol_per_minute` from one address.",
    status_code=201,
    responses=responses(Invalid, Forbidden, Conflict, TooLarge, TooMany)
    | {202: {"description": "An operator is to approve"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["secret", "csr_pem", "facts"],
                        "properties": {
                            "secret": {"type": "string", "maxLength": 128},
                            "csr_pem": {"type": "string", "description": "a P-256 certificate request in PEM"},
                            "facts": {"type": "object", "description": "what the device reports of itself"},
                            "device": {"type": "string", "description": "the id it would like"},
                        },
                    }
                }
            },
        }
    },
)
def enrol(
    request: Request,
    fleet: Annotated[FleetService, Depends(fleet_of)],
    body: Annotated[bytes, Depends(body_of)],
) -> Response:
    origin = request.client.host if request.client else "unknown"
    fleet.admit(origin)
    asked, peer = decode(EnrolRequest, body), request.scope.get(SCOPE_KEY)
    known = None
    if not asked.secret and isinstance(peer, bytes):
        known = fleet.factory_name(x509.load_der_x509_certificate(peer))
    if known is not None:
        came = fleet.enrol_known(known, asked, f"enrol {origin}")
    else:
        came = fleet.enrol(asked, f"enrol {origin}")
    if isinstance(came, Waits):
        return waits(came)
    return Response(msgspec.json.encode(came), status_code=201, media_type="application/json")
