"""Enrolment against a small server: the token's fingerprint decides whom to trust, and the identity is whole or not there."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from covey_agent.identity import load_identity
from covey_contract.enrolment import Broker, EnrolRequest, EnrolResponse
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.signing import Trust
from covey_contract.wire import decode, encode
from covey_hil.testing.authority import Authority

SECRET = "s" * 32


class Enroller:
    """`POST /api/v1/enrol` and `GET /api/v1/ca`."""

    def __init__(self, authority: Authority, *, tls: Path | None = None) -> None:
        self.authority = authority
        self.requests: list[EnrolRequest] = []
        self.foreign_key = False
        enroller = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, authority.pem.encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(*enroller.enrol(decode(EnrolRequest, body)))

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme, host = "http", "127.0.0.1"
        if tls is not None:
            key, certificate = authority.issue("localhost")
            (tls / "server.pem").write_bytes(key + certificate.encode())
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme, host = "https", "localhost"
        self.url = f"{scheme}://{host}:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def enrol(self, request: EnrolRequest) -> tuple[int, bytes]:
        self.requests.append(request)
        if request.secret != SECRET:
            return 401, json.dumps({"title": "Unauthorized", "detail": "the claim token is used or unknown"}).encode()
        device = request.device or "given-1"
        csr = x509.load_pem_x509_csr(request.csr_pem.encode())
        certificate = self.authority.issue(device)[1] if self.foreign_key else self.authority.sign(csr, device)
        response = EnrolResponse(
            device=device,
            certificate_pem=certificate,
            ca_pem=self.authority.pem,
            broker=Broker(host="localhost", port=1),
            trust=Trust(release=(b"r" * 32,), director=(b"d" * 32,)),
        )
        return 201, encode(response)


@pytest.fixture(params=["http", "https"])
def enroller(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Iterator[Enroller]:
    made = Enroller(authority, tls=tmp_path if request.param == "https" else None)
    made.thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


def enroll(enroller: Enroller, state: Path, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    token = token or f"covey1.{enroller.authority.fingerprint}.{SECRET}"
    server = [] if "--server" in words else ["--server", enroller.url]
    command = [sys.executable, "-m", "covey_agent", "enroll", *server, "--token", token, "--state", str(state), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_identity_is_made_and_kept(enroller: Enroller, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = enroll(enroller, state, "--device", "press-9")
    assert done.returncode == 0, done.stderr
    assert "enrolled as press-9" in done.stdout
    identity = load_identity(state / "identity")
    assert (identity.device, identity.trust.release) == ("press-9", (b"r" * 32,))
    assert (state / "identity" / "key.pem").stat().st_mode & 0o777 == 0o600
    key = serialization.load_pem_private_key((state / "identity" / "key.pem").read_bytes(), password=None)
    certificate = x509.load_pem_x509_certificate((state / "identity" / "certificate.pem").read_bytes())
    assert certificate.public_key() == key.public_key()
    assert not (state / "enrolment-key.pem").exists()
    facts = enroller.requests[0].facts
    assert not facts.simulated
    assert facts.runtimes

    again = enroll(enroller, state)
    assert again.returncode == 2
    assert "enrolled already" in again.stderr
    forced = enroll(enroller, state, "--force")
    assert forced.returncode == 0
    assert load_identity(state / "identity").device == "given-1"


def test_a_simulated_device_says_so_for_ever(enroller: Enroller, tmp_path: Path) -> None:
    facts = Facts(architecture="aarch64", board="Raspberry Pi 5", runtimes=(RuntimeFact(name="tflite", version="2"),))
    (tmp_path / "facts.json").write_bytes(encode(facts))
    done = enroll(enroller, tmp_path / "state", "--facts", str(tmp_path / "facts.json"))
    assert "(simulated)" in done.stdout
    assert enroller.requests[0].facts == msgspec.structs.replace(
        facts, simulated=True, agent_version=enroller.requests[0].facts.agent_version
    )
    assert (tmp_path / "state" / "identity" / "facts.json").exists()


def test_a_server_with_another_ca_is_not_shown_the_secret(enroller: Enroller, tmp_path: Path) -> None:
    other = hashlib.sha256(b"another fleet").hexdigest()
    done = enroll(enroller, tmp_path / "state", token=f"covey1.{other}.{SECRET}")
    assert done.returncode == 5
    assert "not the token's server" in done.stderr
    assert enroller.requests == []
    assert not (tmp_path / "state" / "identity").exists()


def test_a_refused_token(enroller: Enroller, tmp_path: Path) -> None:
    token = f"covey1.{enroller.authority.fingerprint}.{'t' * 32}"
    done = enroll(enroller, tmp_path / "state", token=token)
    assert done.returncode == 5
    assert done.stderr.strip() == "covey-agent: the server refuses: the claim token is used or unknown (401)"
    # The key of the failed try is used again, so that an answer that was lost on the way costs nothing.
    kept = (tmp_path / "state" / "enrolment-key.pem").read_bytes()
    assert enroll(enroller, tmp_path / "state").returncode == 0
    assert (tmp_path / "state" / "identity" / "key.pem").read_bytes() == kept


def test_a_certificate_for_another_key(enroller: Enroller, tmp_path: Path) -> None:
    enroller.foreign_key = True
    done = enroll(enroller, tmp_path / "state")
    assert done.returncode == 5
    assert "another key" in done.stderr
    assert not (tmp_path / "state" / "identity").exists()


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ((), "covey1.nonsense", "not a claim token"),
        (("--device", "no spaces"), None, "device id"),
        (("--server", "ftp://x"), None, "is not an address"),
        (("--server", "http://198.51.100.1"), None, "plain http"),
        (("--server", "http://127.0.0.1:1"), None, "cannot be reached"),
        (("--facts", "/none.json"), None, "facts file"),
    ],
)
def test_bad_input_is_one_line(
    enroller: Enroller, tmp_path: Path, words: tuple[str, ...], token: str | None, said: str
) -> None:
    done = enroll(enroller, tmp_path / "state", *words, token=token)
    assert done.returncode in (2, 5)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
