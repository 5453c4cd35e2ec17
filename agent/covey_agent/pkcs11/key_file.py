"""The file that stands for a key in a token: its address, and a stand-in that Python's `ssl` can read.

The stand-in is a P-256 key in PKCS #8 whose public half is the key's own, and whose secret is 1: nobody's. `handshake` has the token sign wherever
that public half is met. Where it does not, what is signed is not believed by anybody, and no connection comes about.
"""

from __future__ import annotations

import base64
import binascii
import re

from covey_agent.pkcs11.address import Address, parse

POINT_BYTES = 65
_WORDS = b"This key is in a PKCS#11 token. Below is a stand-in: its public half, and a secret that is nobody's.\n"
_LINE = re.compile(rb"^Key: (pkcs11:[\x21-\x7e]{1,4096})\n", re.MULTILINE)
_STAND_IN = re.compile(rb"-----BEGIN PRIVATE KEY-----\n([A-Za-z0-9+/=\n]{1,400})-----END PRIVATE KEY-----\n")
# PrivateKeyInfo (RFC 5958) of id-ecPublicKey on P-256, with an ECPrivateKey (RFC 5915) that holds the public key too.
_HEAD = bytes.fromhex(
    "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420" + "00" * 31 + "01" + "a144034200"
)


def wraps(key_pem: bytes) -> bool:
    """Whether this stands for a token's key."""
    return _LINE.search(key_pem) is not None


def write(address: Address, point: bytes) -> bytes:
    """`point`: the public key, uncompressed (X9.62)."""
    lines = base64.encodebytes(_HEAD + point).replace(b"\n", b"")
    body = b"".join(lines[at : at + 64] + b"\n" for at in range(0, len(lines), 64))
    stand_in = b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n"
    return _WORDS + b"Key: " + str(address).encode() + b"\n" + stand_in


def address_of(key_pem: bytes) -> Address:
    """Raises `ValueError` if it is no such file, or `UsageError` if its address is none."""
    found = _LINE.search(key_pem)
    if found is None:
        raise ValueError("this stands for no key in a token")
    return parse(found[1].decode("ascii"))


def point_of(key_pem: bytes) -> bytes:
    """The public key, uncompressed. Raises `ValueError`."""
    found = _STAND_IN.search(key_pem)
    try:
        der = base64.b64decode(found[1] if found is not None else b"", validate=False)
    except binascii.Error as error:
        raise ValueError("the stand-in of a key in a token is damaged") from error
    if der[:-POINT_BYTES] != _HEAD:
        raise ValueError("the stand-in of a key in a token is damaged")
    return der[-POINT_BYTES:]
