"""Joining a fleet: a key is made here and never leaves, its certificate request and a one-time claim token go to the server.

The token carries the fingerprint of the fleet's CA, so that the device knows the server before it has any certificate; nothing
that the server says is believed before its CA has that fingerprint. Instead of a token a factory's certificate will do, beside the CA itself.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import logging
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from covey_agent import durable, keys
from covey_agent.credentials import Credentials
from covey_agent.errors import AgentError, EnrolmentError, UsageError
from covey_agent.identity import Identity, save_identity
from covey_agent.keys import make_key_and_request, same_key
from covey_contract.enrolment import ClaimToken, EnrolRequest, EnrolResponse, parse_claim_token
from covey_contract.errors import ContractError
from covey_contract.facts import Facts
from covey_contract.topics import check_device_id
from covey_contract.wire import decode, encode

log = logging.getLogger(__name__)

_TIMEOUT_S = 20.0
_MAX_ANSWER = 128 * 1024


class Factory(NamedTuple):
    """What a factory has put into the device: its first certificate and key (one file), and the CA of the fleet that it is for."""

    credentials: Path
    ca: Path

    def claim(self) -> ClaimToken:
        """As a token that is worth nothing without the certificate. Raises `UsageError`."""
        try:
            pem = self.ca.read_text(encoding="ascii")
            return ClaimToken(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest(), "")
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.ca} holds no CA certificate in PEM: {error}") from error

    def load_into(self, context: ssl.SSLContext) -> None:
        """Raises `EnrolmentError`."""
        try:
            context.load_cert_chain(self.credentials)
        except OSError as error:
            words = f"{self.credentials} holds no certificate with its key in PEM: {error}"
            raise EnrolmentError(words) from error


def enrol(
    *,
    server: str,
    token: str | Factory,
    state: Path,
    facts: Facts,
    facts_file: bytes | None,
    device: str | None,
    allow_http: bool = False,
    place: str = keys.FILE,
) -> Identity:
    """By a claim token, or what a factory has put into the device; its keys shall be in `place` (`keys.check_where`). Raises `EnrolmentError` or
    `UsageError`, each with one line for people."""
    factory = token if isinstance(token, Factory) else None
    try:
        claim = token.claim() if isinstance(token, Factory) else parse_claim_token(token)
        if device is not None:
            check_device_id(device)
    except ContractError as error:
        raise UsageError(str(error)) from error
    address = check_server(server, allow_http=allow_http)
    if factory is not None and address.scheme != "https":
        raise UsageError("a factory's certificate can be shown over https alone")
    durable.make_folder(state, mode=0o700)
    kept = _kept_key(state)
    key_pem, csr_pem = make_key_and_request(kept, device or "device", place)
    try:
        durable.write(state / "enrolment-key.pem", key_pem, mode=0o600)
        if kept != key_pem:
            _remove_from_token(kept)
        request = EnrolRequest(secret=claim.secret, csr_pem=csr_pem, facts=facts, device=device)
        response = ask(address, claim, encode(request), factory)
        check_certificate(response, key_pem)
        former = _key_in_use(state)
        identity = save_identity(state / "identity", server, key_pem, response, facts_file)
        (state / "enrolment-key.pem").unlink(missing_ok=True)
        _remove_from_token(former)
    except OSError as error:
        raise EnrolmentError(f"the identity cannot be stored in {state}: {error.strerror or error}") from error
    return identity


def check_server(server: str, *, allow_http: bool) -> SplitResult:
    """The address, if the token's secret may be sent there."""
    address = urlsplit(server)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageError(f"{server!r} is not an address: https://HOST[:PORT]")
    try:
        port = address.port
    except ValueError as error:
        raise UsageError(f"{server!r}: {error}") from error
    del port
    if address.scheme == "http" and not (allow_http or _is_loopback(address.hostname)):
        raise UsageError(
            "plain http would show the claim token to the network; use https, or --allow-http where it is safe"
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kept_key(state: Path) -> bytes | None:
    """The key of a try whose answer never came: the server may know it already."""
    try:
        return (state / "enrolment-key.pem").read_bytes()
    except OSError:
        return None


def _key_in_use(state: Path) -> bytes | None:
    """Of the identity that is about to be replaced."""
    try:
        return Credentials(state / "identity").in_use.key.read_bytes()
    except OSError:
        return None


def _remove_from_token(former: bytes | None) -> None:
    """Where the keys before were in one. This device has its identity either way."""
    try:
        if former is not None:
            keys.sweep(former, ())
    except (AgentError, ValueError) as error:
        log.warning("the keys before stay in their token: %s", error)


def check_certificate(response: EnrolResponse, key_pem: bytes) -> None:
    """The certificate must be for our key; raises `EnrolmentError`."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        certificate = x509.load_pem_x509_certificate(response.certificate_pem.encode())
        fits = same_key(certificate, key_pem)
        check_device_id(response.device)
    except (ValueError, UnsupportedAlgorithm, ContractError) as error:
        raise EnrolmentError(f"the server's answer is not an identity: {error}") from error
    if not fits:
        raise EnrolmentError("the server's certificate is for another key")


def ask(address: SplitResult, claim: ClaimToken, body: bytes, factory: Factory | None = None) -> EnrolResponse:
    """Send the request to the server that the token names, or whose CA the factory knows."""
    context: ssl.SSLContext | None = None
    if address.scheme == "https":
        context = trusting(fetch_ca(address, claim))
        if factory is not None:
            factory.load_into(context)
    else:
        fetch_ca(address, claim)  # the secret is not shown to a server of another fleet
    status, answer = exchange(address, "POST", "/api/v1/enrol", body, context)
    if status == 202:
        raise EnrolmentError(f"not let in yet: {problem(status, answer)}; then run this again")
    if status not in (200, 201):
        raise EnrolmentError(f"the server refuses: {problem(status, answer)}")
    try:
        response = decode(EnrolResponse, answer)
    except ContractError as error:
        raise EnrolmentError(f"the server's answer cannot be read: {error}") from error
    check_ca(response.ca_pem, claim)
    return response


def fetch_ca(address: SplitResult, claim: ClaimToken) -> str:
    """The fleet's CA certificate (PEM), known by its fingerprint; how it came does not matter then."""
    context: ssl.SSLContext | None = None
    if address.scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    status, answer = exchange(address, "GET", "/api/v1/ca", None, context)
    if status != 200:
        raise EnrolmentError(f"the server does not tell its CA: {problem(status, answer)}")
    pem = answer.decode("ascii", "replace")
    check_ca(pem, claim)
    return pem


def check_ca(pem: str, claim: ClaimToken) -> None:
    """Raises `EnrolmentError` unless this is the very CA that the token names."""
    try:
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()
    except ValueError as error:
        raise EnrolmentError("the server's CA is not a certificate") from error
    if fingerprint != claim.fingerprint:
        raise EnrolmentError(
            f"this is not the token's server: its CA has the fingerprint {fingerprint[:16]}…, not {claim.fingerprint[:16]}…"
        )


def trusting(ca_pem: str) -> ssl.SSLContext:
    """The fleet's CA, and the system's: the server may have a public certificate."""
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=ca_pem)
    return context


def exchange(
    address: SplitResult,
    method: str,
    path: str,
    body: bytes | None,
    context: ssl.SSLContext | None,
    media_type: str = "application/json",
) -> tuple[int, bytes]:
    """One request; status and at most `_MAX_ANSWER` bytes. Raises `EnrolmentError` if the server cannot be reached."""
    host, port = address.hostname or "", address.port
    connection: http.client.HTTPConnection
    if context is not None:
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, address.path.rstrip("/") + path, body, {"Content-Type": media_type})
        answer = connection.getresponse()
        data = answer.read(_MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise EnrolmentError(f"{address.geturl()} {trouble(address, error)}") from error
    finally:
        connection.close()
    if len(data) > _MAX_ANSWER:
        raise EnrolmentError("the server's answer is too long")
    return answer.status, data


def trouble(address: SplitResult, error: Exception) -> str:
    """What went wrong with a connection, and what to do about it where that is known."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"has no certificate that this fleet's CA made for {address.hostname} ({error.verify_message.rstrip('.')}); "
            "use a name that it is for, or start the server with --public-host NAME"
        )
    if isinstance(error, ssl.SSLError) and error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
        return "does not speak HTTPS; if it is a plain server, its address begins with http://"
    hung_up = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError)
    if address.scheme == "http" and hung_up:
        return "hangs up on plain HTTP; if it speaks HTTPS, its address begins with https://"
    return f"cannot be reached: {words}"


def problem(status: int, answer: bytes) -> str:
    """One line of a problem document (RFC 9457), or the status."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        words = document.get("detail") or document.get("title")
        if isinstance(words, str) and words:
            return f"{words[:300]} ({status})".replace("\n", " ")
    return f"status {status}"
