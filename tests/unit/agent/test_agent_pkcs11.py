"""Addresses of keys in a token, and the files that stand for them. What a token does: tests/integration/identity/test_token.py."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covey_agent.errors import UsageError
from covey_agent.keys import FILE, check_where, where
from covey_agent.pkcs11.address import Address, parse
from covey_agent.pkcs11.key_file import address_of, point_of, wraps, write

REST = "module-path=/usr/lib/token.so&pin-source=/etc/covey/pin"
GOOD = f"pkcs11:token=line%20a;object=press?{REST}"


def test_an_address_says_where_keys_are() -> None:
    found = parse(GOOD)
    assert found == Address("line a", "", "press", b"", "/usr/lib/token.so", "/etc/covey/pin")
    assert parse(str(found)) == found
    assert parse(f"pkcs11:serial=00a1;type=private?{REST}") == found._replace(token="", serial="00a1", object="covey")
    assert parse(GOOD.replace("=/etc", "=file:/etc")) == parse(GOOD.replace("=/etc", "=file:///etc")) == found
    strange = found._replace(token="ü;=&?%/", object="a b#", module="/a b/ü;&?.so", id=bytes(range(16)))
    assert parse(str(strange)) == strange
    assert check_where(GOOD) == str(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pkcs11", "a key's address"),
        ("pkcs11:", "pin-source|module-path"),
        (f"pkcs11:?{REST}", "token or serial"),
        ("pkcs11:token=a?pin-source=/p", "module-path is the path"),
        ("pkcs11:token=a?module-path=/m", "pin-source is the path"),
        ("pkcs11:token=a?module-path=m.so&pin-source=/p", "module-path is the path"),
        ("pkcs11:token=a?module-path=/m&pin-source=|cat", "pin-source is the path"),
        (f"pkcs11:token=a;token=b?{REST}", "is there once"),
        (f"pkcs11:token?{REST}", "is NAME=VALUE"),
        (f"pkcs11:token=?{REST}", "no text of 1 to"),
        (f"pkcs11:token=%0a?{REST}", "no text of 1 to"),
        (f"pkcs11:token=%ff?{REST}", "no text of 1 to"),
        (f"pkcs11:token={'x' * 256}?{REST}", "no text of 1 to"),
        (f"pkcs11:token=a;type=public?{REST}", "type is private"),
        (f"pkcs11:token=a;slot-id=0?{REST}", "slot-id is not understood"),
        (f"pkcs11:token=a;id=%01?{REST}", "id is chosen by the agent"),
        (f"pkcs11:token={'x' * 5000}?{REST}", "a key's address"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


def test_a_pin_has_no_place_in_an_address_and_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="put it into a file") as refused:
        parse("pkcs11:token=a?module-path=/m&pin-value=271828")
    assert "271828" not in str(refused.value)


def test_places_of_keys() -> None:
    assert [check_where(place) for place in ("file", "tpm2")] == ["file", "tpm2"]
    for wrong in ("", "tpm", "/etc/key.pem", f"pkcs11:token=a;id={'%00' * 16}?{REST}"):
        with pytest.raises(UsageError):
            check_where(wrong)


def test_only_keys_of_the_same_installation_follow_each_other() -> None:
    wanted = parse(GOOD)
    first = wanted._replace(id=b"a" * 8 + b"1" * 8)
    assert first.follows(wanted)
    assert first._replace(id=b"a" * 8 + b"2" * 8).follows(first)
    assert not first._replace(id=b"b" * 8 + b"1" * 8).follows(first)
    assert not first._replace(token="another").follows(wanted)
    assert not wanted.follows(first)


def test_a_file_stands_for_a_key_and_holds_no_secret() -> None:
    address = parse(GOOD)._replace(id=bytes(16))
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    written = write(address, point)
    assert wraps(written)
    assert (address_of(written), point_of(written)) == (address, point)
    assert where(written) == str(address)
    # A certificate may follow, as in the file that a renewal writes.
    longer = written + b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    assert (address_of(longer), point_of(longer)) == (address, point)


def test_a_damaged_file_is_noticed() -> None:
    point = b"\4" + bytes(64)
    good = write(parse(GOOD)._replace(id=bytes(16)), point)
    assert point_of(good) == point
    for bad in (
        good.replace(b"MIGH", b"MIGI"),
        good[: len(good) // 2],
        good.replace(b"BEGIN PRIVATE", b"BEGIN OTHER"),
        b"",
    ):
        with pytest.raises(ValueError, match="damaged"):
            point_of(bad)
    with pytest.raises(UsageError):
        address_of(good.replace(b"token=", b"tokem="))
    with pytest.raises(ValueError, match="no key in a token"):
        address_of(b"-----BEGIN PRIVATE KEY-----\n")
    plain = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert where(plain) == FILE
