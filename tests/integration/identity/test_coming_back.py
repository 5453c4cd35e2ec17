"""A device whose certificate has expired comes back: it shows its old key, an operator approves the new one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from covey_agent.credentials import Credentials
from covey_contract.enrolment import RenewRequest, renewal_statement
from covey_contract.wire import encode
from tests.integration.identity.conftest import BIN, DEVICE, Place, until

Make = Callable[..., Place]
LIFE_S = 9.0
ASKED_MOST_S = 30.0


def expire(place: Place) -> None:
    """Wait for the end of the device's certificate."""
    ends = Credentials(place.state / "identity").in_use.read().ends_ms
    until("the certificate's end", lambda: time.time() * 1000 > ends + 500)


def waits(place: Place) -> str | None:
    with place.client as client:
        return next((one["key"] for one in client.renewals() if one["device"] == DEVICE), None)


def test_an_operator_lets_it_in_again(make: Make) -> None:
    place = make(LIFE_S)
    expire(place)
    place.settings["certificate_days"] = "1"
    place.stop_server()
    place.start_server()
    place.start_agent()
    key = until("the request", lambda: waits(place), ASKED_MOST_S)
    told = until("its own word", lambda: _undecided(place), ASKED_MOST_S)
    assert f"covey device approve {DEVICE}" in told
    assert "waiting for an operator" in place.command("status").stdout
    assert key[:16] in place.covey("device", "waiting")
    assert "waits for" in place.covey("device", "show", DEVICE)
    assert "device.renewal_asked" in place.audited()
    assert not place.device()["online"]
    # It asks again with the same key, also after a kill.
    assert place.agent is not None
    place.agent.kill()
    place.start_agent()
    seen = place.device()["renewals"][0]["seen_ms"]
    until("it to ask again", lambda: place.device()["renewals"][0]["seen_ms"] > seen, ASKED_MOST_S)
    assert [one["key"] for one in place.device()["renewals"]] == [key]
    assert key[:16] in place.covey("device", "approve", DEVICE)
    until("a connection", lambda: place.device()["online"], ASKED_MOST_S)
    assert place.renewals() == 1
    assert place.status()["certificate"]["standing"] == "good"
    assert place.device()["renewals"] == []
    assert {"device.renewal_approve", "device.renew"} <= set(place.audited())


def _undecided(place: Place) -> str | None:
    certificate = place.status()["certificate"]
    return str(certificate["words"]) if certificate["standing"] == "undecided" else None


def test_an_operator_does_not_let_it_in(make: Make) -> None:
    place = make(LIFE_S)
    expire(place)
    place.start_agent()
    until("the request", lambda: waits(place), ASKED_MOST_S)
    place.covey("device", "refuse", DEVICE)
    until("the refusal", lambda: place.status()["certificate"]["standing"] == "refused", ASKED_MOST_S)
    assert waits(place) is None
    assert place.renewals() == 0


def test_a_revoked_device_never_comes_back(make: Make) -> None:
    place = make(LIFE_S)
    place.covey("device", "revoke", DEVICE, "--yes")
    expire(place)
    place.start_agent()
    until("the refusal", lambda: place.status()["certificate"]["standing"] == "refused", ASKED_MOST_S)
    assert waits(place) is None
    place.covey("device", "approve", DEVICE, code=1)


def test_who_has_not_the_old_key_files_nothing(make: Make) -> None:
    """Neither the certificate alone nor another's signature is a proof; nor is a certificate of another authority with our serial number."""
    import httpx
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from covey_agent.keys import make_key_and_request
    from covey_hil.testing.authority import Authority

    place = make(LIFE_S, host="127.0.0.1:0")
    expire(place)
    certificate = (place.state / "identity" / "certificate.pem").read_text()
    _, csr = make_key_and_request(None, DEVICE)
    stranger = ec.generate_private_key(ec.SECP256R1())
    proof = stranger.sign(renewal_statement(certificate, csr), ec.ECDSA(hashes.SHA256()))

    def post(**fields: object) -> tuple[int, str]:
        request = RenewRequest(**{"certificate_pem": certificate, "csr_pem": csr, "proof": proof, **fields})  # type: ignore[arg-type]
        answer = httpx.post(f"{place.told['url']}/api/v1/renew", content=encode(request))
        return answer.status_code, answer.json()["code"]

    assert post() == (403, "bad_proof")
    assert post(proof=b"") == (403, "bad_proof")
    assert post(certificate_pem="rubbish") == (422, "invalid")
    key, foreign = Authority(place.folder).issue(DEVICE)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    other = load_pem_private_key(key, None)
    assert isinstance(other, ec.EllipticCurvePrivateKey)
    signed = other.sign(renewal_statement(foreign, csr), ec.ECDSA(hashes.SHA256()))
    assert post(certificate_pem=foreign, proof=signed) == (403, "bad_certificate")
    assert waits(place) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler is needed to set the processes' clocks ahead")
@pytest.mark.timeout(240)
def test_a_device_offline_for_a_year_comes_back(make: Make, tmp_path: Path) -> None:
    """Server, broker and agent, each with a clock that is thirteen months on: certificate, metadata and root that the device holds are of
    the past, and the root has been changed meanwhile, time and again. All lifetimes are the ones by default."""
    from covey_hil.digits.data import model_path

    place = make(90 * 86_400.0, enrol=False, local_worker="true", worker_targets="onnxruntime-fp32")
    place.enrol()
    push = ("model", "push", "digits")
    more = ("--calibration", _samples(tmp_path), "--target", "onnxruntime-fp32", "--wait")
    for version in ("1.0", "1.1"):
        place.covey(*push, version, str(model_path(version)), *more)
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    place.covey("device", "assign", DEVICE, "digits", "1.0", "--probation", "1s")
    until("the first build", lambda: place.status()["models"] and place.status()["models"][0]["version"] == "1.0")
    held = _root(place)
    place.switch_off()
    place.stop_server()
    _rotate(place, 3)

    place.later_s, place.settings["local_worker"] = 395 * 86_400, "false"
    place.start_server()
    assert datetime.fromisoformat(json.loads(held)["signed"]["expires"]).timestamp() < time.time() + 395 * 86_400
    place.start_agent()
    # What it has serves meanwhile.
    key = until("the request", lambda: waits(place), ASKED_MOST_S)
    until("what it has to serve", lambda: place.status()["models"][0]["serving"])
    assert place.status()["models"][0]["version"] == "1.0"
    assert not place.device()["online"]
    ended = place.device()["renewals"][0]["ended_ms"]
    assert datetime.fromtimestamp(ended / 1000, UTC).year < datetime.now(UTC).year + 2
    place.covey("device", "approve", DEVICE, "--key", key[:16])
    until("a connection", lambda: place.device()["online"], ASKED_MOST_S)
    # And it follows orders of today, vouched for by roots that it has never seen.
    place.covey("device", "assign", DEVICE, "digits", "1.1")
    until("the second build", lambda: _active(place) == "1.1", 90.0)
    now, then = json.loads(_root(place))["signed"], json.loads(held)["signed"]
    assert now["version"] >= then["version"] + 3


def _samples(folder: Path) -> str:
    from covey_hil.digits.data import write_samples

    (folder / "samples").mkdir()
    write_samples(folder / "samples")
    return str(folder / "samples" / "calibration.npz")


def _active(place: Place) -> str | None:
    models = place.device()["models"]
    return models[0]["active"]["version"] if models and models[0]["active"] else None


def _root(place: Place) -> bytes:
    """The newest that the device trusts."""
    roots = list((place.state / "tuf").glob("*/root.json"))
    return roots[0].read_bytes() if roots else (place.state / "identity" / "root.json").read_bytes()


def _rotate(place: Place, times: int) -> None:
    for number in range(times):
        words = ["keys", "rotate", "timestamp", "--data", str(place.data)]
        done = subprocess.run([BIN / "covey-server", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{number}: {done.stdout}{done.stderr}"
