"""A device that reaches nothing but the broker keeps its certificate alive over its own session: real server, mosquitto over TLS, real agent."""

from __future__ import annotations

import time
from collections.abc import Callable

from covey_agent.credentials import RENEWED, Credentials
from tests.integration.identity.conftest import Place, until


def ends_ms(place: Place) -> int:
    return Credentials(place.state / "identity").in_use.read().ends_ms


def test_it_renews_over_its_session_which_goes_on_under_the_new_certificate(behind: Callable[..., Place]) -> None:
    place = behind(20.0)
    first, key = ends_ms(place), Credentials(place.state / "identity").in_use.key.read_bytes()
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    until("two renewals", lambda: place.renewals() >= 2)
    until("the first certificate's end", lambda: time.time() * 1000 > first + 2000)
    until("the session under the new one", lambda: place.device()["certificate_ends_ms"] == ends_ms(place))
    assert place.device()["online"]
    assert ends_ms(place) > first
    assert Credentials(place.state / "identity").in_use.key.read_bytes() != key
    assert {path.name for path in (place.state / "identity").glob("*.pem")} == {"ca.pem", RENEWED}
    with place.client as client:
        asked = [one for one in client.admin.audit() if one["action"] == "device.renew"]
    assert len(asked) >= 2
    assert {one["origin"] for one in asked} == {"renew mqtt"}
    assert place.status()["certificate"]["standing"] == "good"


def test_killed_while_it_asks_and_while_the_server_is_away_it_renews_all_the_same(behind: Callable[..., Place]) -> None:
    place = behind(3600.0)
    first = ends_ms(place)
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    place.covey("device", "renew", "press-7")
    until("the request", lambda: (place.state / "identity" / "asking.pem").exists() or place.renewals())
    assert place.agent is not None
    place.agent.kill()
    # The broker holds what was asked for the server; nobody is there any more to take the answer.
    place.stop_server()
    place.start_server()
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    if not place.renewals():
        place.covey("device", "renew", "press-7")
    until("the new one", lambda: place.renewals() >= 1)
    assert ends_ms(place) > first
    until("the session under it", lambda: place.device()["certificate_ends_ms"] == ends_ms(place))


def test_a_revoked_device_gets_none_this_way_either(behind: Callable[..., Place]) -> None:
    place = behind(15.0)
    first = ends_ms(place)
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    place.covey("device", "revoke", "press-7", "--yes")
    until("the end of the certificate", lambda: time.time() * 1000 > first)
    until("its own word", lambda: place.status()["certificate"]["standing"] in {"failed", "refused"}, 30.0)
    assert ends_ms(place) == first
    assert "device.renew" not in place.audited()


def test_after_its_certificates_end_this_way_is_closed(behind: Callable[..., Place]) -> None:
    """The broker lets no expired device in, and where it lets nobody in nothing can be asked: the port for HTTPS is needed."""
    place = behind(9.0)
    until("the certificate's end", lambda: time.time() * 1000 > ends_ms(place) + 500)
    place.start_agent()

    def told() -> bool:
        return "there is no session with the broker" in place.status()["certificate"]["words"]

    until("its own word", told, 30.0)
    assert not place.device()["online"]
    assert place.renewals() == 0
    assert place.device()["renewals"] == []
