"""The fleet's certificate authority: one P-256 root, made at the first start, that names the server and every device.

A device's certificate has its id as common name, since the broker takes that as the user name, and as URI SAN
`urn:covey:device:ID`. Nothing of a certificate request is taken over but its public key. The private key never leaves
its folder and is readable by its owner alone.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from covey_contract.errors import TopicError
from covey_contract.topics import check_device_id
from covey_server.fleet.durable import write_durably

# The server's own user name at the broker; no device may have it.
# The server's two sessions: one hears the devices, the other speaks to them.
SERVER_USER = "covey-server"
SENDER_USER = "covey-server-sender"
SERVER_USERS = (SERVER_USER, SENDER_USER)
DEVICE_DAYS = 90
CRL_DAYS = 7
_ROOT_DAYS = 20 * 365
_SERVER_DAYS = 825
_RENEW_BEFORE = datetime.timedelta(days=30)
# Clocks of devices lag; a certificate is valid from a day before it is issued, or a tenth of a life that is shorter than ten days.
_BACKDATED = datetime.timedelta(days=1)
_BACKDATED_SHARE = 10
_MAX_CSR_BYTES = 16_384
# A serial number has 20 bytes at most and is positive: these, the mark of the key before them, and a 1 before all.
_SERIAL_RANDOM_BYTES = 9


class CertificateRequestError(Exception):
    """The certificate request cannot be signed."""


@dataclass(frozen=True)
class IssuedCertificate:
    pem: str
    serial: str  # hex
    not_after_ms: int


@dataclass(frozen=True)
class KeyPair:
    """Paths of a certificate and its private key in PEM."""

    certificate: Path
    key: Path


def _time(now_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).replace(microsecond=0)


def _millis(moment: datetime.datetime) -> int:
    return int(moment.timestamp() * 1000)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class FleetCA:
    """Signs with the root key. Use `load_or_create`; the constructor only stores."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.folder = folder
        self._key = key
        self._certificate = certificate

    @classmethod
    def load_or_create(cls, folder: Path, now_ms: int) -> FleetCA:
        """Raises `OSError` if the folder cannot be used and `ValueError` if what lies there is no CA."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key_path, certificate_path = folder / "root.key", folder / "root.pem"
        if not key_path.exists():
            write_durably(key_path, _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} holds no P-256 key")
        if not certificate_path.exists():
            write_durably(certificate_path, _root(key, _time(now_ms)).public_bytes(serialization.Encoding.PEM))
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if certificate.public_key() != key.public_key():
            raise ValueError(f"{certificate_path} does not belong to {key_path.name}")
        return cls(folder, key, certificate)

    @property
    def ca_pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def ca_path(self) -> Path:
        return self.folder / "root.pem"

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the root certificate in DER; claim tokens carry it."""
        return hashlib.sha256(self._certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def made(self, certificate: x509.Certificate) -> bool:
        """Whether it is this authority's, expired or not."""
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def sign_device_csr(self, csr_pem: str, device: str, now_ms: int, days: float = DEVICE_DAYS) -> IssuedCertificate:
        """A client certificate for `device` on the request's public key, which must be P-256.

        Raises `CertificateRequestError`, also for a device id that may not be one.
        """
        public = request_key(csr_pem)
        try:
            check_device_id(device)
        except TopicError as error:
            raise CertificateRequestError(str(error)) from error
        if device in SERVER_USERS:
            raise CertificateRequestError(f"{device!r} is the server's own name")
        now = _time(now_ms)
        certificate = self._sign(
            device,
            public,
            now,
            days,
            [x509.UniformResourceIdentifier(f"urn:covey:device:{device}")],
            ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        return IssuedCertificate(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            f"{certificate.serial_number:x}",
            _millis(certificate.not_valid_after_utc),
        )

    def server_certificate(self, hosts: Sequence[str], now_ms: int) -> KeyPair:
        """The certificate of broker and API for these names and addresses; kept until it nears its end or they change."""
        names = [_host_name(host) for host in dict.fromkeys(hosts)]
        return self._kept("server", "covey", names, ExtendedKeyUsageOID.SERVER_AUTH, now_ms)

    def listener_certificate(self, now_ms: int) -> KeyPair:
        """The certificate of the server's session that hears the devices; its user name is `SERVER_USER`."""
        return self._own("link", SERVER_USER, now_ms)

    def sender_certificate(self, now_ms: int) -> KeyPair:
        """That of the session that speaks to them; `SENDER_USER`."""
        return self._own("sender", SENDER_USER, now_ms)

    def _own(self, kind: str, user: str, now_ms: int) -> KeyPair:
        names = [x509.UniformResourceIdentifier("urn:covey:server")]
        return self._kept(kind, user, names, ExtendedKeyUsageOID.CLIENT_AUTH, now_ms)

    def crl(self, revoked: Iterable[tuple[str, int]], now_ms: int) -> bytes:
        """The revocation list in PEM over (serial in hex, time of revocation), good for `CRL_DAYS`: re-issue it on a timer,
        since brokers lock everyone out when it has expired."""
        now = _time(now_ms)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _BACKDATED)
            .next_update(now + datetime.timedelta(days=CRL_DAYS))
            .add_extension(x509.CRLNumber(now_ms), critical=False)
        )
        for serial, revoked_ms in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(_time(revoked_ms))
                .build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _sign(
        self,
        common_name: str,
        public: ec.EllipticCurvePublicKey,
        now: datetime.datetime,
        days: float,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        life = datetime.timedelta(days=days)
        begin = (now - min(_BACKDATED, life / _BACKDATED_SHARE)).replace(microsecond=0)
        end = min((now + life).replace(microsecond=0), self._certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(int(serial_prefix(public) + secrets.token_hex(_SERIAL_RANDOM_BYTES), 16))
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _kept(
        self,
        stem: str,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now_ms: int,
    ) -> KeyPair:
        pair, now = KeyPair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key"), _time(now_ms)
        if not self._still_good(pair, names, now):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(common_name, key.public_key(), now, _SERVER_DAYS, names, usage)
            write_durably(pair.key, _key_pem(key), 0o600)
            write_durably(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        return pair

    def _still_good(self, pair: KeyPair, names: Sequence[x509.GeneralName], now: datetime.datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
            key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
            held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        # A kill between the two writes leaves a key that is not the certificate's.
        same_key = certificate.public_key() == key.public_key()
        return same_key and set(held) == set(names) and certificate.not_valid_after_utc - now > _RENEW_BEFORE


def serial_prefix(public: ec.EllipticCurvePublicKey) -> str:
    """With what the serial numbers (in hex) of all certificates on this key begin, so that a key is known again."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "1" + hashlib.sha256(der).hexdigest()[:20]


def _root(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = _name(f"Covey fleet {x509.random_serial_number():x}"[:32])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=_ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def request_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a certificate request is for, and is signed by. Raises `CertificateRequestError`."""
    if len(csr_pem) > _MAX_CSR_BYTES:
        raise CertificateRequestError(f"the certificate request has more than {_MAX_CSR_BYTES} characters")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        good = request.is_signature_valid
        public = request.public_key()
    except Exception as error:  # noqa: BLE001 - hostile ASN.1: the parser's errors have no common base
        raise CertificateRequestError("this is not a certificate request in PEM") from error
    if not good:
        raise CertificateRequestError("the certificate request is not signed by its own key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise CertificateRequestError("the certificate request's key is not P-256")
    return public
