"""A device whose keys are in a PKCS#11 token: SoftHSM, a token in software, with a real server, mosquitto and agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from covey_agent.credentials import ASKING, RENEWED, Credentials
from covey_agent.identity import KEY
from covey_agent.pkcs11.address import Address
from covey_agent.pkcs11.key_file import address_of
from covey_hil.testing.softhsm import PIN, ids, is_installed, new_token, objects
from tests.integration.identity.conftest import DEVICE, Place, until

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="SoftHSM is not installed (`./dev setup --test` installs it)"
)


def test_keys_never_leave_the_token_and_are_renewed_in_it(make: Callable[..., Place], where: Address) -> None:
    place = make(30.0, enrol=False)
    place.enrol("--key", str(where))
    identity = place.state / "identity"
    first = address_of((identity / KEY).read_bytes())
    assert ids(where) == {first.id}
    began = Credentials(identity).in_use.read()
    place.start_agent()
    until("a connection, by mutual TLS", lambda: place.device()["online"])
    until("a renewal", lambda: place.renewals() >= 1)
    second = address_of((identity / RENEWED).read_bytes())
    assert second.follows(first)
    assert Credentials(identity).in_use.read().ends_ms > began.ends_ms
    until("the old key's end", lambda: first.id not in ids(where))
    until("the session under the new one", lambda: (place.device()["certificate_ends_ms"] or 0) > began.ends_ms)
    assert place.device()["online"]
    assert place.gateway() is not None
    said = place.command("doctor").stdout
    assert f"in the PKCS#11 token '{where.token}', which does not give it away" in said
    # Its PIN is nowhere but in its file.
    place.stop_agent()
    for path in (place.folder / "agent.log", *place.state.rglob("*")):
        if path.is_file():
            assert PIN.encode() not in path.read_bytes(), path
    # One key is in use, and one that is being asked with, at most.
    assert len(ids(where)) <= 2


def test_killed_while_it_asks_it_renews_in_the_token_all_the_same_and_leaves_nothing_there(
    behind: Callable[..., Place], where: Address
) -> None:
    """Over MQTT, where nothing else is to be reached."""
    place = behind(3600.0, "--key", str(where))
    first = ids(where)
    asking = place.state / "identity" / ASKING
    for _ in range(2):
        place.start_agent()
        until("a connection", lambda: place.device()["online"])
        renewals = place.renewals()
        place.covey("device", "renew", DEVICE)
        until("a key to ask with", lambda now=renewals: asking.exists() or place.renewals() > now)  # type: ignore[misc]
        assert place.agent is not None
        place.agent.kill()
        until("its end", lambda: not place.device()["online"])
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    renewals = place.renewals()
    place.covey("device", "renew", DEVICE)
    until("a renewal", lambda: place.renewals() > renewals)
    renewed = address_of((place.state / "identity" / RENEWED).read_bytes())
    until("no other key", lambda: ids(where) == {renewed.id})
    assert renewed.id not in first
    until("the session", lambda: place.device()["online"])


def test_without_the_token_nobody_connects_and_with_it_again_one_does(
    make: Callable[..., Place], where: Address, tmp_path: Path
) -> None:
    place = make(3600.0, enrol=False)
    place.enrol("--key", str(where))
    # On another machine, the folder alone.
    place.environment = {"SOFTHSM2_CONF": new_token(tmp_path / "other", where.token)}
    place.start_agent()
    until("its trouble", lambda: "a handshake cannot be signed" in place.log())
    assert "any more" in place.log()
    assert not place.device()["online"]
    assert "FAIL" in next(line for line in place.command("doctor").stdout.splitlines() if "token" in line)
    place.stop_agent()
    place.environment = {}
    place.start_agent()
    until("a connection", lambda: place.device()["online"])


def test_to_enrol_again_takes_the_keys_before_out_of_the_token(make: Callable[..., Place], where: Address) -> None:
    place = make(3600.0, enrol=False)
    place.enrol("--key", str(where))
    before = ids(where)
    place.enrol("--force", "--key", str(where))
    assert len(ids(where)) == 1
    assert ids(where) != before
    place.enrol("--force")
    assert objects(where) == []


def test_what_cannot_be_used_is_told_before_the_claim_token_is_spent(
    make: Callable[..., Place], where: Address
) -> None:
    place = make(3600.0, enrol=False)
    with place.client as client:
        claim = client.create_claim_token(device=DEVICE)["token"]
    words = ("--server", place.told["url"], "--token", claim)
    for wrong, code in (
        (str(where._replace(token="nobody's")), 1),
        (str(where._replace(pin_source="/nowhere/pin")), 1),
        ("pkcs11:token=a?pin-value=1", 2),
        ("smartcard", 2),
    ):
        done = place.command("enroll", *words, "--key", wrong)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("covey-agent: ")
        assert len(done.stderr.splitlines()) == 1
    assert place.command("enroll", *words, "--key", str(where)).returncode == 0
