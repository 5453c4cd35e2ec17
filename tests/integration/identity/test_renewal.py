"""A device keeps its certificate alive: real server, real mosquitto with mutual TLS, real agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from covey_agent.credentials import NEXT, RENEWED, Credentials
from covey_agent.renewing import Asker, Failed
from covey_hil.testing.authority import Authority
from tests.integration.identity.conftest import Place, until

Make = Callable[..., Place]


def ends_ms(place: Place) -> int:
    return Credentials(place.state / "identity").in_use.read().ends_ms


def key_of(place: Place) -> bytes:
    return Credentials(place.state / "identity").in_use.key.read_bytes()


def test_a_device_outlives_its_certificates_by_renewing_them_itself(make: Make) -> None:
    place = make(20.0)
    first, key = ends_ms(place), key_of(place)
    assert (place.state / "identity" / "key.pem").exists()
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    gateway = until("the gateway", place.gateway)
    until("two renewals", lambda: place.renewals() >= 2)
    until("the first certificate's end", lambda: time.time() * 1000 > first + 2000)
    assert place.device()["online"]
    assert ends_ms(place) > first
    # A key of its own for each, and the one of enrolment is gone.
    assert key_of(place) != key
    assert {path.name for path in (place.state / "identity").glob("*.pem")} == {"ca.pem", RENEWED}
    assert (place.state / "identity" / RENEWED).stat().st_mode & 0o777 == 0o600
    # The server goes by what the device says it uses.
    until("the server to know", lambda: place.device()["certificate_ends_ms"] == ends_ms(place))
    assert place.audited().count("device.renew") >= 2
    # No loop: not before some half of a life is over.
    assert place.renewals() <= 1 + (time.time() * 1000 - first + 20_000) / 9_000
    assert place.gateway() == gateway
    told = place.status()["certificate"]
    assert told["ends_ms"] == ends_ms(place)
    assert told["standing"] == "good"


def test_the_server_asks_for_it_by_command(make: Make) -> None:
    place = make(3600.0)
    first = ends_ms(place)
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    assert "asking for a new certificate" in place.covey("device", "renew", "press-7")
    until("the new one", lambda: place.renewals() == 1)
    assert ends_ms(place) > first
    shown = place.covey("device", "show", "press-7")
    assert "certificate" in shown
    assert "in 0 days" in shown
    assert "certificate: ends" in place.command("status").stdout
    # The old one stays good: the server has not revoked it.
    assert [one["revoked_ms"] for one in place.device()["certificates"]] == [None, None]


def test_over_plain_http_the_request_is_signed_by_the_old_key(make: Make) -> None:
    """A server on loopback has no TLS of its own, nor has one behind a proxy that ends it."""
    place = make(20.0, host="127.0.0.1:0")
    first = ends_ms(place)
    place.start_agent()
    until("a renewal", lambda: place.renewals() >= 1)
    assert ends_ms(place) > first


def test_what_the_broker_refuses_is_given_up_and_the_old_one_stays(make: Make) -> None:
    place = make(3600.0)
    first = ends_ms(place)
    # One that looks as it should, of another authority.
    key, certificate = Authority(place.folder).issue("press-7")
    (place.state / "identity" / NEXT).write_bytes(key + certificate.encode())
    place.start_agent()
    until("the old one's connection", lambda: place.device()["online"])
    until("it is given up", lambda: not (place.state / "identity" / NEXT).exists())
    assert ends_ms(place) == first
    until("it is told", lambda: place.status()["certificate"]["standing"] == "failed")
    assert "the broker does not take the new certificate" in place.log()


def test_a_revoked_device_gets_none(make: Make) -> None:
    place = make(15.0)
    first = ends_ms(place)
    place.covey("device", "revoke", "press-7", "--yes")
    place.start_agent()
    until("the refusal", lambda: place.status()["certificate"]["standing"] == "refused", 30.0)
    assert ends_ms(place) == first
    assert "device.renew" not in place.audited()


def test_a_server_of_another_authority_is_not_believed(make: Make, tmp_path: Path) -> None:
    place = make(3600.0)
    (place.state / "identity" / "ca.pem").write_text(Authority(tmp_path).pem)
    first = ends_ms(place)
    folder = place.state / "identity"
    asker = Asker("press-7", place.told["url"], folder, Credentials(folder))
    outcome = asker.ask(int(time.time() * 1000), expired=False)
    assert isinstance(outcome, Failed)
    assert "no certificate that this fleet's CA made" in outcome.words
    assert ends_ms(place) == first
