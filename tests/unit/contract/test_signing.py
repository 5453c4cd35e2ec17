"""Envelopes and who may sign what."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_contract.enrolment import ClaimToken, parse_claim_token
from covey_contract.envelope import decode_envelope, encode_envelope, pae
from covey_contract.errors import DecodeError, SignatureError
from covey_contract.messages import ASSIGNMENT_TYPE, COMMAND_TYPE, Assignment
from covey_contract.signing import key_id, open_envelope, public_key, seal, verify

DIRECTOR, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
ASSIGNMENT = Assignment(
    id="a1", device="d1", counter=1, issued_ms=1, expires_ms=2, model="digits", version="1.0", build="ab" * 32
)


def test_pae_is_the_published_example() -> None:
    # DSSE v1.0.2, protocol.md: PAE("http://example.com/HelloWorld", "hello world").
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_what_the_director_signed_is_accepted() -> None:
    envelope = decode_envelope(encode_envelope(seal(ASSIGNMENT, ASSIGNMENT_TYPE, [DIRECTOR])))
    assert open_envelope(Assignment, envelope, ASSIGNMENT_TYPE, [public_key(DIRECTOR)]) == ASSIGNMENT


def test_a_second_signature_does_not_hurt() -> None:
    envelope = seal(ASSIGNMENT, ASSIGNMENT_TYPE, [STRANGER, DIRECTOR])
    assert open_envelope(Assignment, envelope, ASSIGNMENT_TYPE, [public_key(DIRECTOR)]) == ASSIGNMENT


def test_a_stranger_is_refused() -> None:
    envelope = seal(ASSIGNMENT, ASSIGNMENT_TYPE, [STRANGER])
    with pytest.raises(SignatureError):
        verify(envelope, ASSIGNMENT_TYPE, [public_key(DIRECTOR)])


def test_a_stranger_who_borrows_the_key_id_is_refused() -> None:
    envelope = seal(ASSIGNMENT, ASSIGNMENT_TYPE, [STRANGER])
    borrowed = msgspec.structs.replace(envelope.signatures[0], keyid=key_id(public_key(DIRECTOR)))
    with pytest.raises(SignatureError):
        verify(msgspec.structs.replace(envelope, signatures=(borrowed,)), ASSIGNMENT_TYPE, [public_key(DIRECTOR)])


def test_a_signature_for_another_type_is_refused() -> None:
    envelope = seal(ASSIGNMENT, COMMAND_TYPE, [DIRECTOR])
    with pytest.raises(SignatureError):
        verify(envelope, ASSIGNMENT_TYPE, [public_key(DIRECTOR)])
    relabelled = msgspec.structs.replace(envelope, payload_type=ASSIGNMENT_TYPE)
    with pytest.raises(SignatureError):
        verify(relabelled, ASSIGNMENT_TYPE, [public_key(DIRECTOR)])


@pytest.mark.parametrize("flip", [0, 10, -1])
def test_one_changed_byte_is_refused(flip: int) -> None:
    envelope = seal(ASSIGNMENT, ASSIGNMENT_TYPE, [DIRECTOR])
    payload = bytearray(envelope.payload)
    payload[flip] ^= 1
    with pytest.raises(SignatureError):
        verify(msgspec.structs.replace(envelope, payload=bytes(payload)), ASSIGNMENT_TYPE, [public_key(DIRECTOR)])


def test_an_envelope_without_signatures_is_refused() -> None:
    envelope = seal(ASSIGNMENT, ASSIGNMENT_TYPE, [])
    with pytest.raises(SignatureError):
        verify(envelope, ASSIGNMENT_TYPE, [public_key(DIRECTOR)])


def test_claim_tokens_read_back_and_never_show_their_secret_in_errors() -> None:
    token = ClaimToken(hashlib.sha256(b"ca").hexdigest(), "s" * 43)
    assert parse_claim_token(f" {token}\n") == token
    with pytest.raises(DecodeError) as caught:
        parse_claim_token(f"covey1.nonsense.{'s' * 43}")
    assert "sss" not in str(caught.value)
