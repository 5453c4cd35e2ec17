"""Where a webhook may lead, over a real HTTP server: no private address, no redirect, no stranger's certificate, no endless answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from covey_server.notifications.mail import Mailer
from covey_server.notifications.sending import Sender
from covey_server.settings import Settings
from tests.unit.server_platform.notified import Desk, Receiver, desk_of, dripping, receiver_at, tls_of

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site


def test_redirects_are_not_followed(desk: Desk, receiver: Receiver) -> None:
    with receiver_at() as inside:
        desk.add(receiver)
        desk.tell()
        receiver.answers = [(307, {"Location": inside.url})]
        desk.round()
        assert inside.got == []
        assert desk.deliveries()[0]["error"] == "answered 307; redirects are not followed"


def test_private_addresses_are_refused_when_it_is_added_and_when_it_is_sent(
    site: Site, tmp_path: Path, receiver: Receiver
) -> None:
    desk = desk_of(site, Settings(data=tmp_path), private=False)
    refused = desk.call("POST", "/webhooks", {"name": "chat", "url": receiver.url}, 422)
    assert (refused["code"], refused["field"]) == ("bad_destination", "url")
    port = receiver.url.split(":")[2].split("/")[0]
    # A name, which could lead anywhere, is judged when it is looked up.
    desk.call("POST", "/webhooks", {"name": "chat", "url": f"https://localhost:{port}/"}, 201)
    desk.tell()
    desk.round()
    assert receiver.got == []
    assert "private address" in desk.deliveries()[0]["error"]


def test_a_name_that_changes_its_address_in_between_gains_nothing(
    site: Site, tmp_path: Path, receiver: Receiver
) -> None:
    """The name is looked up once; what was judged is what is connected to."""
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    settings = Settings(data=tmp_path, webhook_private=True)
    desk = desk_of(site, settings)
    sender = Sender(Mailer(settings), private=True, timeout_s=5, resolve=resolve)
    desk.service._sender = sender
    desk.call("POST", "/webhooks", {"name": "chat", "url": receiver.url.replace("127.0.0.1", "hooks.example")}, 201)
    desk.tell()
    desk.round()
    assert desk.deliveries()[0]["state"] == "delivered"
    assert asked == ["hooks.example"]
    assert receiver.got[0][0]["host"].startswith("hooks.example:")


def test_https_is_checked_against_the_authorities_that_are_trusted(site: Site, tmp_path: Path) -> None:
    served, trusting = tls_of(tmp_path)
    with receiver_at(served) as receiver:
        settings = Settings(data=tmp_path, webhook_private=True)
        stranger = desk_of(site, settings)
        stranger.add(receiver)
        stranger.tell()
        stranger.round()
        assert "certificate is not trusted" in stranger.deliveries()[0]["error"]
        friend = desk_of(site, settings, context=trusting)
        friend.call("POST", f"/deliveries/{stranger.deliveries()[0]['id']}/retry")
        friend.round()
        assert friend.deliveries()[0]["state"] == "delivered"


def test_a_receiver_that_drips_is_hung_up_on(site: Site, tmp_path: Path) -> None:
    """Each byte comes within any timeout of the socket; all of them together do not."""
    stop = threading.Event()
    with dripping(stop) as url:
        desk = desk_of(site, Settings(data=tmp_path, webhook_private=True, webhook_timeout_s=0.5))
        desk.call("POST", "/webhooks", {"name": "chat", "url": url}, 201)
        desk.tell()
        desk.round()
        stop.set()
        delivery = desk.deliveries()[0]
    assert (delivery["state"], delivery["error"]) == ("pending", "no answer in 0.5 s")
