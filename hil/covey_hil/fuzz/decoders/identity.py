"""What a device's identity is made of: answers to its renewals, and the files and addresses of keys that are elsewhere."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from covey_agent.errors import EnrolmentError, UsageError
from covey_agent.keys import make_key_and_request
from covey_agent.pkcs11.address import Address, parse
from covey_agent.pkcs11.key_file import address_of, point_of, wraps, write
from covey_agent.renewing import check
from covey_contract.enrolment import RenewReply
from covey_contract.errors import ContractError
from covey_contract.wire import decode, encode
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.testing.authority import Authority

_DEVICE = "press-7"
_NOW_MS = 1_800_000_000_000
_CHOSEN = Address("line a", "", "press", b"", "/usr/lib/token.so", "/etc/covey/pin")


def _renewal(folder: Path) -> Made:
    """An answer over MQTT; its certificate is believed only if it is what the authority has made."""
    authority = Authority(folder)
    key, request = make_key_and_request(None, _DEVICE)
    good = authority.device(request, _DEVICE, _NOW_MS, 90)
    made = x509.load_pem_x509_certificate(good.encode())

    def read(data: bytes) -> object:
        reply = decode(RenewReply, data)
        check(reply.certificate_pem.encode(), key, authority.pem.encode(), _DEVICE, _NOW_MS)
        assert x509.load_pem_x509_certificate(reply.certificate_pem.encode()) == made
        return reply.status

    return Made(read, (encode(RenewReply(id="r1", status=200, certificate_pem=good)),))


def _address(_: Path) -> Made:
    """What is read is the same when it is written and read again."""

    def read(data: bytes) -> object:
        found = parse(data.decode("latin-1"))
        assert parse(str(found)) == found
        return found

    return Made(read, (str(_CHOSEN).encode(), str(_CHOSEN._replace(id=bytes(range(16)))).encode()))


def _key_file(_: Path) -> Made:
    point = b"\4" + bytes(64)

    def read(data: bytes) -> object:
        if not wraps(data):
            raise ValueError("another kind of key")
        found, half = address_of(data), point_of(data)
        assert (address_of(again := write(found, half)), point_of(again)) == (found, half)
        return found

    return Made(read, (write(_CHOSEN._replace(id=bytes(16)), point),))


_PKCS11 = ("covey_agent.pkcs11.address", "covey_agent.pkcs11.key_file")
DECODERS = (
    Decoder(
        "device.renewal",
        "the server",
        _renewal,
        (ContractError, EnrolmentError),
        ("covey_agent.renewing",),
        share=Share.MIDDLE,
    ),
    Decoder("device.key_address", "a person at the device", _address, (UsageError,), _PKCS11[:1], Form.BYTES),
    Decoder("device.key_file", "a file", _key_file, (ValueError, UsageError), _PKCS11, Form.BYTES),
)
