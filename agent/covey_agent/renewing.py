"""Asking the server for the next certificate: one try, over HTTPS; where the server does not answer there, over the device's MQTT session.

By EST (`simplereenroll`) with the device's certificate in the handshake. Where that is not seen (plain HTTP on loopback, a proxy that ends
TLS) or not taken any more (it has expired), by a request that its key has signed; so over MQTT. An expired one is followed only when an
operator has approved; a revoked one never. Nothing that the server says is believed before `check` has passed.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from covey_agent.credentials import Credentials, Pair, read_certificate
from covey_agent.enrol import check_server, exchange, problem, trusting
from covey_agent.errors import AgentError, EnrolmentError
from covey_agent.identity import CA
from covey_agent.keys import same_key, sign
from covey_contract.enrolment import RenewReply, RenewRequest, RenewResponse, renewal_statement
from covey_contract.errors import ContractError
from covey_contract.wire import decode, encode

if TYPE_CHECKING:
    from cryptography import x509

_EST = "/.well-known/est/simplereenroll"
_SIGNED = "/api/v1/renew"
# Clocks of devices lag; the server dates certificates back for that.
_SLACK_MS = 86_400_000


@dataclass(frozen=True)
class Granted:
    """A certificate that may be believed, and its key."""

    key_pem: bytes
    certificate_pem: bytes


@dataclass(frozen=True)
class Undecided:
    """An operator is to approve; ask again later. `words` are the server's."""

    words: str


@dataclass(frozen=True)
class Refused:
    """There is none for this device, and asking again will not change that soon."""

    words: str


@dataclass(frozen=True)
class Failed:
    """This time there was none."""

    words: str


Outcome = Granted | Undecided | Refused | Failed


class _Answer(NamedTuple):
    """`words` tell people what it is, if it is no certificate (200)."""

    status: int
    certificate_pem: bytes
    words: str


class _NotSeen(Exception):
    """The server does not see, or does not take, the certificate in the handshake."""


@dataclass(frozen=True)
class Asker:
    """`folder` is the identity's. `by_broker` asks over MQTT, and raises `EnrolmentError` if no answer comes; None: there is no such way."""

    device: str
    server: str
    folder: Path
    credentials: Credentials
    by_broker: Callable[[RenewRequest], RenewReply] | None = None

    def ask(self, now_ms: int, *, expired: bool) -> Outcome:
        """One try; never raises for what server, network or disk do."""
        try:
            pair = self.credentials.in_use
            key_pem, csr_pem = self.credentials.next_key(self.device)
            answer = self._answer(pair, csr_pem, expired=expired)
            if answer.status == 202:
                return Undecided(answer.words)
            if answer.status == 403:
                return Refused(answer.words)
            if answer.status != 200:
                return Failed(f"the server refuses: {answer.words}")
            check(answer.certificate_pem, key_pem, (self.folder / CA).read_bytes(), self.device, now_ms)
        except AgentError as error:
            return Failed(str(error))
        except (OSError, ValueError) as error:
            return Failed(f"the identity in {self.folder} cannot be used: {error}")
        return Granted(key_pem, answer.certificate_pem)

    def _answer(self, pair: Pair, csr_pem: str, *, expired: bool) -> _Answer:
        """By one way after the other, each of which ends before the next begins. Raises `EnrolmentError`."""
        try:
            status, answer = self._exchange(pair, csr_pem, expired=expired)
            if not _is_nobodys(status):
                return _Answer(status, _read(answer) if status == 200 else b"", problem(status, answer))
            trouble = f"the server refuses: {problem(status, answer)}"
        except EnrolmentError as error:
            trouble = str(error)
        if self.by_broker is None:
            raise EnrolmentError(trouble)
        try:
            reply = self.by_broker(_signed(pair, csr_pem))
        except EnrolmentError as error:
            raise EnrolmentError(f"{trouble}; {error}") from error
        words = " ".join(reply.detail[:300].split())
        return _Answer(reply.status, reply.certificate_pem.encode(), f"{words} ({reply.status})")

    def _exchange(self, pair: Pair, csr_pem: str, *, expired: bool) -> tuple[int, bytes]:
        address = check_server(
            self.server, allow_http=True
        )  # no secret is sent: whoever listens learns two public keys
        if address.scheme == "https" and not expired:
            try:
                return self._by_est(pair, csr_pem)
            except _NotSeen:
                pass
        body = encode(_signed(pair, csr_pem))
        context = self._context() if address.scheme == "https" else None
        return exchange(address, "POST", _SIGNED, body, context)

    def _by_est(self, pair: Pair, csr_pem: str) -> tuple[int, bytes]:
        context = self._context()
        pair.load_into(context)
        body = "".join(line for line in csr_pem.splitlines() if not line.startswith("-")).encode()
        try:
            status, answer = exchange(urlsplit(self.server), "POST", _EST, body, context, "application/pkcs10")
        except EnrolmentError as error:
            if _may_be_ours(error.__cause__):
                raise _NotSeen from error
            raise
        if status == 401:
            raise _NotSeen
        if status != 200:
            return status, answer
        return status, _certificates(answer)

    def _context(self) -> ssl.SSLContext:
        self.credentials.in_use.prepare()
        return trusting((self.folder / CA).read_text(encoding="ascii"))


def _is_nobodys(status: int) -> bool:
    """Whether it is what a proxy or another server says at our server's address, or ours while it cannot answer."""
    return status in {404, 405, 407} or status >= 500


def _may_be_ours(cause: BaseException | None) -> bool:
    """Whether a connection failed as it does where the server takes no offence at anything but our certificate."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False  # it is theirs
    return isinstance(cause, ssl.SSLError | ConnectionResetError | http.client.RemoteDisconnected)


def check(certificate_pem: bytes, key_pem: bytes, ca_pem: bytes, device: str, now_ms: int) -> None:
    """Whether it is the fleet's, on our key, in our name, for TLS clients, and good now. Raises `EnrolmentError`."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        validity = read_certificate(certificate_pem)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise EnrolmentError(f"the server's answer is no certificate of this fleet ({error})") from error
    if not same_key(certificate, key_pem):
        raise EnrolmentError("the server's certificate is for another key")
    common = [one.value for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common != [device] or f"urn:covey:device:{device}" not in names.get_values_for_type(
        x509.UniformResourceIdentifier
    ):
        raise EnrolmentError(f"the server's certificate is not for {device}")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise EnrolmentError("the server's certificate is not for TLS clients")
    if validity.has_expired(now_ms) or now_ms < validity.begins_ms - _SLACK_MS:
        raise EnrolmentError("the server's certificate is not good now: by one of the two clocks")


def _signed(pair: Pair, csr_pem: str) -> RenewRequest:
    text = pair.certificate.read_text(encoding="ascii")
    certificate_pem = text[max(text.find("-----BEGIN CERTIFICATE"), 0) :]
    statement = renewal_statement(certificate_pem, csr_pem)
    proof = sign(pair.key.read_bytes(), statement)
    return RenewRequest(certificate_pem=certificate_pem, csr_pem=csr_pem, proof=proof)


def _read(answer: bytes) -> bytes:
    """The certificate of an answer, in PEM. Raises `EnrolmentError`."""
    if answer.startswith(b"-----BEGIN CERTIFICATE"):
        return answer
    try:
        return decode(RenewResponse, answer).certificate_pem.encode()
    except ContractError as error:
        raise EnrolmentError(f"the server's answer cannot be read: {error}") from error


def _certificates(answer: bytes) -> bytes:
    """The device's certificate out of EST's PKCS #7, in PEM. Raises `EnrolmentError`."""
    from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

    try:
        found: list[x509.Certificate] = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
    except (binascii.Error, ValueError) as error:
        raise EnrolmentError(f"the server's answer is no PKCS #7: {error}") from error
    if len(found) != 1:
        raise EnrolmentError(f"the server's answer has {len(found)} certificates")
    return found[0].public_bytes(Encoding.PEM)
