"""Enrolment over Secure Transport (RFC 7030, RFC 8951): for devices and tools that speak it already.

    GET  /.well-known/est/cacerts           the fleet's authority
    POST /.well-known/est/simpleenroll      with a claim token as the password of HTTP Basic; the user name does not matter;
                                            or with a factory's certificate in the TLS handshake (setting `bootstrap_ca`)
    POST /.well-known/est/simplereenroll    with the device's own certificate, in the TLS handshake

The requests' common name is the id that the device would like; what else it is, it tells when it connects. It gets a certificate only: who
wants the broker's address and the keys to trust as well enrols by `/api/v1/enrol`. 202: an operator is to decide, ask again later.
"""

from __future__ import annotations

import base64
import binascii
import textwrap
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from covey_contract.enrolment import EnrolRequest, parse_claim_token
from covey_contract.errors import DecodeError
from covey_contract.facts import Facts
from covey_server.api.enrol import body_of, fleet_of, waits
from covey_server.errors import Forbidden, Invalid, Unauthorized
from covey_server.fleet.renewal import Waits
from covey_server.fleet.service import FleetService
from covey_server.peer_certificate import SCOPE_KEY

# The RFC describes them; they answer in its own formats.
router = APIRouter(prefix="/.well-known/est", include_in_schema=False)
_basic = HTTPBasic(auto_error=False, realm="covey: a claim token as the password")

_UNKNOWN = "unknown"


@router.get("/cacerts")
def get_authority(fleet: Annotated[FleetService, Depends(fleet_of)]) -> Response:
    return _certificates(fleet.ca_pem, "application/pkcs7-mime")


@router.post("/simpleenroll")
def enrol(
    request: Request,
    fleet: Annotated[FleetService, Depends(fleet_of)],
    body: Annotated[bytes, Depends(body_of)],
    credentials: Annotated[HTTPBasicCredentials | None, Depends(_basic)],
) -> Response:
    origin = _origin(request)
    fleet.admit(origin)
    peer = request.scope.get(SCOPE_KEY)
    known = fleet.factory_name(x509.load_der_x509_certificate(peer)) if isinstance(peer, bytes) else None
    if known is not None:
        csr_pem, name = _request_of(body)
        asked = EnrolRequest(secret="", csr_pem=csr_pem, facts=Facts(architecture=_UNKNOWN), device=name)
        came = fleet.enrol_known(known, asked, f"est {origin}")
        return waits(came) if isinstance(came, Waits) else _certificates(came.certificate_pem)
    if credentials is None:
        raise Unauthorized("this needs a claim token as the password of HTTP Basic")
    try:
        secret = parse_claim_token(credentials.password).secret
    except DecodeError as error:
        raise Forbidden(str(error), code="bad_claim_token") from error
    csr_pem, name = _request_of(body)
    asked = EnrolRequest(secret=secret, csr_pem=csr_pem, facts=Facts(architecture=_UNKNOWN), device=name)
    return _certificates(fleet.enrol(asked, f"est {origin}").certificate_pem)


@router.post("/simplereenroll")
def enrol_again(
    request: Request,
    fleet: Annotated[FleetService, Depends(fleet_of)],
    body: Annotated[bytes, Depends(body_of)],
) -> Response:
    origin = _origin(request)
    fleet.admit(origin)
    peer = request.scope.get(SCOPE_KEY)
    if not isinstance(peer, bytes):
        raise Unauthorized("this needs the device's certificate in the TLS handshake")
    csr_pem, name = _request_of(body)
    return _certificates(fleet.renew(x509.load_der_x509_certificate(peer), csr_pem, name, f"est {origin}"))


def _origin(request: Request) -> str:
    return request.client.host if request.client else _UNKNOWN


def _request_of(body: bytes) -> tuple[str, str | None]:
    """The certificate request in PEM, and its common name. Raises `Invalid`."""
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
        name = x509.load_der_x509_csr(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (binascii.Error, ValueError, TypeError, x509.InvalidVersion) as error:
        raise Invalid("the body is not a certificate request: PKCS #10 in base64") from error
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n"
    return pem, str(name[0].value) if name else None


def _certificates(pem: str, media_type: str = "application/pkcs7-mime; smime-type=certs-only") -> Response:
    """A PKCS #7 of certificates alone, in base64 (RFC 7030, 4.1.3)."""
    data = pkcs7.serialize_certificates(x509.load_pem_x509_certificates(pem.encode()), Encoding.DER)
    return Response(base64.encodebytes(data), media_type=media_type, headers={"Content-Transfer-Encoding": "base64"})
