"""OpenSSF Model Signing: what the publisher signed is pushed, and nothing else is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from covey_client.cli import main

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer


@pytest.fixture
def desk(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, the publisher's keys and another's."""
    monkeypatch.setenv("COVEY_SERVER", server.url)
    monkeypatch.setenv("COVEY_TOKEN", "t")
    for name in ("publisher", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    (tmp_path / "digits.onnx").write_bytes(b"a graph")
    assert main(["model", "sign", str(tmp_path / "digits.onnx"), "--key", str(tmp_path / "publisher.pem")]) == 0
    return tmp_path


def push(desk: Path, signer: str = "publisher") -> int:
    words = ["model", "push", "digits", "1.1", str(desk / "digits.onnx")]
    return main([*words, "--signature", str(desk / "digits.onnx.sig"), "--signer", str(desk / f"{signer}.pub")])


def test_the_signature_is_a_bundle_that_others_read(desk: Path) -> None:
    bundle = json.loads((desk / "digits.onnx.sig").read_text())
    assert bundle["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
    assert bundle["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"


@pytest.mark.parametrize("wrong", ["model", "signature", "key"])
def test_what_is_not_signed_is_not_pushed(
    desk: Path, wrong: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    if wrong == "model":
        (desk / "digits.onnx").write_bytes(b"another graph")
    elif wrong == "signature":
        (desk / "digits.onnx.sig").write_text("{}")
    assert push(desk, "other" if wrong == "key" else "publisher") == 1
    told = capsys.readouterr()
    assert "is not a signature of" in told.err
    assert told.err.count("\n") == 1
    assert not server.asked


def test_what_is_signed_is_pushed(desk: Path, server: FakeServer) -> None:
    server.refuse("POST /api/v1/models/digits/versions", 409, "it is there already")
    assert push(desk) == 1
    assert [asked.path for asked in server.asked] == ["/api/v1/models/digits/versions"]


def test_a_key_that_cannot_sign_is_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "bad.pem").write_text("no key")
    assert main(["model", "sign", str(desk / "digits.onnx"), "--key", str(desk / "bad.pem")]) == 1
    assert capsys.readouterr().err.startswith("covey: ")


def test_without_the_extra_it_is_one_line(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert push(desk) == 1
    assert "covey-client[model-signing]" in capsys.readouterr().err
