"""EST as its RFC has it, spoken by curl and read by openssl, with a server beyond loopback."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from covey_hil.processes import Child, wait_for

PROGRAM = str(Path(sys.executable).with_name("covey-server"))


@dataclass
class Est:
    """A running server, and a folder of keys."""

    folder: Path
    told: dict[str, Any]
    headers: dict[str, str]

    def curl(self, path: str, *words: str | Path) -> tuple[int, bytes]:
        """(status, body)."""
        out = self.folder / "body"
        out.unlink(missing_ok=True)
        command = ["curl", "-sS", "--cacert", self.told["ca"], "-o", out, "-w", "%{http_code} %{content_type}"]
        done = _run(*command, *words, f"{self.told['url']}/.well-known/est/{path}")
        status, _, kind = done.decode().partition(" ")
        if status == "200":
            assert kind.startswith("application/pkcs7-mime")
        return int(status), out.read_bytes() if out.exists() else b""

    def key(self, name: str) -> Path:
        path = self.folder / f"{name}.key"
        _run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
        return path

    def request(self, key: Path, common_name: str) -> Path:
        path = key.with_suffix(".p10")
        der = _run("openssl", "req", "-new", "-key", key, "-subj", f"/CN={common_name}", "-outform", "DER")
        path.write_bytes(base64.encodebytes(der))
        return path

    def post(self, path: str, request: Path, *words: str | Path) -> tuple[int, bytes]:
        return self.curl(path, "-H", "Content-Type: application/pkcs10", "--data-binary", f"@{request}", *words)

    def certificate(self, body: bytes, name: str) -> Path:
        path = self.folder / f"{name}.pem"
        (self.folder / "p7").write_bytes(base64.b64decode(body))
        _run("openssl", "pkcs7", "-inform", "DER", "-in", self.folder / "p7", "-print_certs", "-out", path)
        return path

    def api(self, method: str, path: str, **more: Any) -> Any:
        answer = httpx.request(method, f"{self.told['url']}/api/v1{path}", headers=self.headers, verify=False, **more)  # noqa: S501 - loopback, and what is tested is EST
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def enrolled(self, name: str) -> tuple[Path, Path]:
        """Key and certificate of a device that has enrolled by EST."""
        token = self.api("POST", "/claim-tokens", json={"device": name})["token"]
        key = self.key(name)
        status, body = self.post("simpleenroll", self.request(key, name), "-u", f"anybody:{token}")
        assert status == 200, body
        return key, self.certificate(body, name)


def _run(*words: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in words], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a factory's authority (factory.key, factory.pem)."""
    folder = tmp_path_factory.mktemp("factory")
    for name in ("factory", "elsewhere"):
        key = folder / f"{name}.key"
        _run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        words = ["-subj", f"/CN={name}", "-days", "30", "-addext", "basicConstraints=critical,CA:true"]
        _run("openssl", "req", "-x509", "-new", "-key", key, *words, "-out", folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def est(tmp_path_factory: pytest.TempPathFactory, factory: Path) -> Iterator[Est]:
    folder = tmp_path_factory.mktemp("est")
    data = folder / "data"
    words = [PROGRAM, "run", "--data", str(data), "--listen", "0.0.0.0:0", "--local-worker", "false"]
    words += ["--public-host", "127.0.0.1", "--broker-host", "127.0.0.1"]
    words += ["--bootstrap-ca", str(factory / "factory.pem")]
    server = Child("server", words, folder / "server.log")
    server.start()
    try:
        wait_for("the server", lambda: (data / "server.json").exists(), 60.0)
        token = (data / "admin-token").read_text().strip()
        told = httpx.Response(200, content=(data / "server.json").read_bytes()).json()
        yield Est(folder, told, {"Authorization": f"Bearer {token}"})
    finally:
        server.stop(20.0)


def test_the_authority(est: Est) -> None:
    status, body = est.curl("cacerts")
    assert status == 200
    got = est.certificate(body, "authority")
    wanted = _run("openssl", "x509", "-in", est.told["ca"], "-fingerprint", "-noout")
    assert _run("openssl", "x509", "-in", got, "-fingerprint", "-noout") == wanted


def test_a_claim_token_buys_one_certificate(est: Est) -> None:
    token = est.api("POST", "/claim-tokens", json={"device": "press-1"})["token"]
    key = est.key("press-1")
    request = est.request(key, "press-1")
    status, body = est.post("simpleenroll", request, "-u", f":{token}")
    assert status == 200
    certificate = est.certificate(body, "press-1")
    assert b"OK" in _run("openssl", "verify", "-CAfile", est.told["ca"], certificate)
    text = _run("openssl", "x509", "-in", certificate, "-noout", "-text").decode()
    assert "URI:urn:covey:device:press-1" in text
    assert _run("openssl", "x509", "-in", certificate, "-pubkey", "-noout") == _run(
        "openssl", "ec", "-in", key, "-pubout"
    )
    other = est.request(est.key("other"), "press-1")
    assert est.post("simpleenroll", other, "-u", f":{token}")[0] == 403
    assert est.api("GET", "/devices/press-1")["id"] == "press-1"


def test_the_certificate_buys_the_next_one(est: Est) -> None:
    key, certificate = est.enrolled("press-2")
    new = est.key("press-2-new")
    with_old = ("--cert", certificate, "--key", key)
    status, body = est.post("simplereenroll", est.request(new, "press-2"), *with_old)
    assert status == 200
    renewed = est.certificate(body, "press-2-new")
    assert b"OK" in _run("openssl", "verify", "-CAfile", est.told["ca"], renewed)
    # Both are good until the old one expires; and the new one renews itself.
    assert est.post("simplereenroll", est.request(new, "press-2"), "--cert", renewed, "--key", new)[0] == 200
    assert est.post("simplereenroll", est.request(new, "press-2"), *with_old)[0] == 200


def test_who_is_refused(est: Est) -> None:
    key, certificate = est.enrolled("press-3")
    request = est.request(key, "press-3")
    shown = ("--cert", certificate, "--key", key)
    assert est.post("simplereenroll", request)[0] == 401
    assert est.post("simpleenroll", request)[0] == 401
    assert est.post("simpleenroll", request, "-u", "x:no-token")[0] == 403
    assert est.post("simplereenroll", est.request(key, "press-4"), *shown)[0] == 422
    rubbish = est.folder / "rubbish.p10"
    rubbish.write_bytes(b"bm90IGEgcmVxdWVzdA==")
    assert est.post("simplereenroll", rubbish, *shown)[0] == 422
    # Another authority's certificate does not even get through the handshake.
    foreign = est.folder / "foreign.pem"
    _run("openssl", "req", "-x509", "-new", "-key", key, "-subj", "/CN=press-3", "-days", "2", "-out", foreign)
    with pytest.raises(AssertionError):
        est.post("simplereenroll", request, "--cert", foreign, "--key", key)
    est.api("POST", "/devices/press-3/revoke")
    assert est.post("simplereenroll", est.request(key, "press-3"), *shown)[0] == 403


def made(est: Est, factory: Path, name: str, by: str = "factory", serial: str | None = None) -> tuple[Path, Path]:
    """Key and certificate that a factory has put into a device."""
    key = est.key(f"born-{name}-{by}")
    request, certificate = key.with_suffix(".csr"), key.with_suffix(".pem")
    _run("openssl", "req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
    signer: list[str | Path] = ["-CA", factory / f"{by}.pem", "-CAkey", factory / f"{by}.key", "-days", "20"]
    numbered = ["-set_serial", f"0x{serial}"] if serial else ["-CAcreateserial"]
    _run("openssl", "x509", "-req", "-in", request, *signer, *numbered, "-out", certificate)
    return key, certificate


def test_a_factorys_certificate_buys_the_first_enrolment(est: Est, factory: Path) -> None:
    key, born = made(est, factory, "robot-1")
    shown = ("--cert", born, "--key", key)
    request = est.request(est.key("robot-1"), "robot-1")
    status, body = est.post("simpleenroll", request, *shown)
    assert status == 200, body
    certificate = est.certificate(body, "robot-1")
    assert b"OK" in _run("openssl", "verify", "-CAfile", est.told["ca"], certificate)
    device = est.api("GET", "/devices/robot-1")
    assert device["certificates"][0]["revoked_ms"] is None
    # The second time, and for another key, an operator is asked; RFC 7030 has 202 for that.
    other = est.request(est.key("robot-1-new"), "robot-1")
    status, body = est.post("simpleenroll", other, *shown)
    assert status == 202
    assert "has enrolled before; an operator is to approve" in body.decode()
    (waiting,) = est.api("GET", "/renewals")["items"]
    assert (waiting["device"], waiting["ended_ms"]) == ("robot-1", None)
    est.api("POST", "/devices/robot-1/renewal", json={"decision": "approve"})
    status, body = est.post("simpleenroll", other, *shown)
    assert status == 200, body
    assert b"OK" in _run("openssl", "verify", "-CAfile", est.told["ca"], est.certificate(body, "robot-1-new"))
    # An approval is for one certificate; and a factory's renews nothing.
    assert est.post("simpleenroll", other, *shown)[0] == 202
    assert est.post("simplereenroll", other, *shown)[0] == 403
    est.api("POST", "/devices/robot-1/revoke")
    assert est.post("simpleenroll", other, *shown)[0] == 403


def test_whose_factory_certificate_is_not_taken(est: Est, factory: Path) -> None:
    key, born = made(est, factory, "robot-2")
    request = est.request(est.key("robot-3"), "robot-3")
    assert est.post("simpleenroll", request, "--cert", born, "--key", key)[0] == 409  # another's name
    for name in ("covey-server", "a.b"):
        key, born = made(est, factory, name)
        request = est.request(est.key(f"bad-{name}"), name)
        assert est.post("simpleenroll", request, "--cert", born, "--key", key)[0] == 422
    key, born = made(est, factory, "robot-4", by="elsewhere")
    with pytest.raises(AssertionError):  # not even through the handshake
        est.post("simpleenroll", est.request(est.key("robot-4"), "robot-4"), "--cert", born, "--key", key)
    # A factory that gives out the serial number of a fleet's certificate gets nothing by it.
    _, mine = est.enrolled("press-9")
    serial = _run("openssl", "x509", "-in", mine, "-noout", "-serial").decode().strip().partition("=")[2]
    key, born = made(est, factory, "press-9", serial=serial)
    request = est.request(est.key("thief"), "press-9")
    assert est.post("simplereenroll", request, "--cert", born, "--key", key)[0] == 403
