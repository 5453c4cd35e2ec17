"""Webhooks and e-mail from end to end: a real HTTP server, a real SMTP server, the service's own thread."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from covey_server.db.tables import Delivery
from covey_server.fleet.ca import FleetCA
from covey_server.notifications import mail, outbox
from covey_server.notifications.mail import Mailer
from covey_server.notifications.outbox import Mailing
from covey_server.notifications.sealing import Seal
from covey_server.notifications.sending import Sender
from covey_server.notifications.service import NotificationService
from covey_server.settings import Settings

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent and answers what it is told to."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hold: threading.Event | None = None
    arrived: threading.Event = field(default_factory=threading.Event)

    def verified(self, secret: str, index: int = -1) -> dict[str, Any]:
        """A message's body, if its signature is right, as a receiver would check it."""
        headers, body = self.got[index]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        made = base64.b64encode(hmac.digest(base64.b64decode(secret[6:]), signed, hashlib.sha256)).decode()
        assert f"v1,{made}" in headers["webhook-signature"].split(" ")
        return dict(json.loads(body))


@contextmanager
def _receiver(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            made.arrived.set()
            if made.hold is not None:
                made.hold.wait(30)
            status, headers = made.answers.pop(0) if made.answers else (204, {})
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
            except OSError:
                return  # whoever asked has hung up

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        if context is not None:
            http.socket = context.wrap_socket(http.socket, server_side=True)
        made.url = f"http{'' if context is None else 's'}://127.0.0.1:{http.server_address[1]}/hook?key=in-the-address"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        if made.hold is not None:
            made.hold.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with _receiver() as made:
        yield made


@dataclass
class Desk:
    """A server with a notification service whose thread does not run: the tests say when it looks and sends."""

    site: Site
    service: NotificationService

    def call(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        answer = self.site.client.request(method, f"/api/v1{path}", json=body, headers=self.site.as_("admin"))
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def add(self, receiver: Receiver, name: str = "chat", **more: object) -> Any:
        return self.call("POST", "/webhooks", {"name": name, "url": receiver.url, "secret": SECRET, **more}, 201)

    def tell(self, source: str = "build 1", event: Any = "build.failed") -> None:
        with self.site.services.database.session() as session:
            data = {"model": "digits", "campaign": "digits 1.0"}
            outbox.tell(session, event, "digits 1.0: it could not be built", data, source, self.site.clock())

    def round(self) -> int:
        self.service.collect()
        return self.service.deliver()

    def deliveries(self, **query: Any) -> list[Any]:
        answer = self.site.client.get("/api/v1/deliveries", params=query, headers=self.site.as_("admin"))
        return list(answer.json()["items"])


def desk_of(site: Site, settings: Settings, *, private: bool = True, **parts: Any) -> Desk:
    use = site.services
    use.settings = settings
    use.seal = Seal.load_or_create(settings.data)
    sender = Sender(
        Mailer(settings, parts.pop("mail_context", None)),
        private=private,
        timeout_s=settings.webhook_timeout_s,
        context=parts.pop("context", None),
    )
    service = NotificationService(
        *(use.database, site.clock, use.bus, use.seal, sender, Mailing(settings.mail_to, settings.mail_events)),
        console_url="https://fleet.example",
        chance=lambda: 0.0,
        **parts,
    )
    return Desk(site, service)


@pytest.fixture
def desk(site: Site, tmp_path: Path) -> Desk:
    return desk_of(site, Settings(data=tmp_path, webhook_private=True, webhook_timeout_s=10))


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# --- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_message_is_signed_and_says_what_happened(desk: Desk, receiver: Receiver) -> None:
    made = desk.add(receiver, events=["build.failed"])
    assert made["secret"] == SECRET
    assert "secret" not in desk.call("GET", "/webhooks/chat")
    desk.tell()
    desk.tell("campaign 1", "campaign.halted")  # nobody wants that
    assert desk.round() == 1
    assert receiver.verified(SECRET) == {
        "type": "build.failed",
        "timestamp": "2027-01-15T08:00:00.000+00:00",
        "data": {"summary": "digits 1.0: it could not be built", "model": "digits", "campaign": "digits 1.0"},
    }
    headers = receiver.got[0][0]
    assert headers["webhook-timestamp"] == str(desk.site.clock() // 1000)
    assert headers["content-type"] == "application/json"
    (delivery,) = desk.deliveries()
    assert (delivery["state"], delivery["status"], delivery["attempts"]) == ("delivered", 204, 1)
    assert delivery["message"] == headers["webhook-id"]
    assert desk.round() == 0


def test_it_is_tried_again_later_and_later_with_the_same_id_and_then_given_up(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    receiver.answers = [(500, {})] * 11
    waited = 0
    while desk.deliveries()[:1] == [] or desk.deliveries()[0]["state"] == "pending":
        desk.round()
        delivery = desk.deliveries()[0]
        if delivery["due_ms"] is not None:
            assert desk.round() == 0  # not before its time
            desk.site.clock.now_ms = delivery["due_ms"]
            waited += 1
    assert (delivery["state"], delivery["attempts"], waited) == ("dead", 10, 9)
    assert delivery["error"] == "answered 500"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 10
    assert len({headers["webhook-signature"] for headers, _ in receiver.got}) == 10
    receiver.answers = []
    again = desk.call("POST", f"/deliveries/{delivery['id']}/retry")
    assert (again["state"], again["attempts"]) == ("pending", 0)
    assert desk.round() == 1
    assert desk.deliveries(state="delivered", webhook="chat")[0]["id"] == delivery["id"]
    desk.call("POST", f"/deliveries/{delivery['id']}/retry", status=409)


def test_a_receiver_says_when_to_come_again_and_when_never(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    receiver.answers = [(429, {"Retry-After": "77"}), (410, {})]
    began = desk.site.clock()
    desk.round()
    assert desk.deliveries()[0]["due_ms"] == began + 77_000
    desk.site.clock.pass_s(77)
    desk.round()
    assert desk.deliveries()[0]["state"] == "dead"
    hook = desk.call("GET", "/webhooks/chat")
    assert (hook["disabled_ms"], hook["disabled_why"]) == (desk.site.clock(), "its receiver answered 410 Gone")
    desk.tell("build 2")
    assert desk.round() == 0
    assert desk.call("PATCH", "/webhooks/chat", {"disabled": False})["disabled_why"] == ""
    desk.tell("build 3")
    assert desk.round() == 1


def test_redirects_are_not_followed(desk: Desk, receiver: Receiver) -> None:
    with _receiver() as inside:
        desk.add(receiver)
        desk.tell()
        receiver.answers = [(307, {"Location": inside.url})]
        desk.round()
        assert inside.got == []
        assert desk.deliveries()[0]["error"] == "answered 307; redirects are not followed"


def test_the_secret_is_changed_without_a_gap(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    rotated = desk.call("POST", "/webhooks/chat/secret", {"overlap_s": 60})
    assert rotated["previous_secret_until_ms"] == desk.site.clock() + 60_000
    desk.tell()
    desk.round()
    receiver.verified(SECRET)
    receiver.verified(rotated["secret"])
    desk.site.clock.pass_s(60)
    desk.tell("build 2")
    desk.round()
    receiver.verified(rotated["secret"])
    with pytest.raises(AssertionError):
        receiver.verified(SECRET)


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
    served, trusting = _tls(tmp_path)
    with _receiver(served) as receiver:
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
    with _dripping(stop) as url:
        desk = desk_of(site, Settings(data=tmp_path, webhook_private=True, webhook_timeout_s=0.5))
        desk.call("POST", "/webhooks", {"name": "chat", "url": url}, 201)
        desk.tell()
        desk.round()
        stop.set()
        delivery = desk.deliveries()[0]
    assert (delivery["state"], delivery["error"]) == ("pending", "no answer in 0.5 s")


def test_no_secret_and_no_address_is_logged_or_shown(
    desk: Desk, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        desk.add(receiver)
        desk.tell()
        receiver.answers = [(500, {})]
        desk.round()
    assert "webhook chat: build.failed: answered 500; to be tried again" in caplog.text
    shown = json.dumps(desk.deliveries()) + desk.site.client.get("/api/v1/audit", headers=desk.site.as_("viewer")).text
    for word in (SECRET, "in-the-address"):
        assert word not in shown + caplog.text
    with desk.site.services.database.reading() as session:
        rows = session.connection().exec_driver_sql("SELECT secret, previous_secret FROM webhooks").all()
    assert SECRET.encode() not in bytes(rows[0][0])


def test_webhooks_are_for_administrators(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    for method, path in (
        ("GET", "/webhooks"),
        ("POST", "/webhooks"),
        ("PATCH", "/webhooks/chat"),
        ("DELETE", "/webhooks/chat"),
        ("POST", "/webhooks/chat/secret"),
        ("POST", "/webhooks/chat/test"),
        ("GET", "/deliveries"),
        ("POST", "/deliveries/1/retry"),
        ("POST", "/mail-test"),
    ):
        body = {"name": "x", "url": "https://x.example/", "recipient": "a@x.example"}
        answer = desk.site.client.request(method, f"/api/v1{path}", json=body, headers=desk.site.as_("operator"))
        assert answer.status_code == 403, path


def test_removing_one_takes_along_what_was_still_to_be_sent(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.call("POST", "/webhooks", {"name": "chat", "url": receiver.url}, 409)
    desk.tell()
    desk.service.collect()
    desk.call("DELETE", "/webhooks/chat", status=204)
    desk.call("GET", "/webhooks/chat", status=404)
    assert desk.round() == 0
    assert desk.deliveries() == []


# --- the thread -------------------------------------------------------------------------------------------------------


def test_the_thread_delivers_beside_a_receiver_that_hangs_and_stops(desk: Desk, receiver: Receiver) -> None:
    with _receiver() as stuck:
        stuck.hold = threading.Event()
        desk.add(stuck, "stuck")
        desk.add(receiver, "chat")
        for number in range(6):
            desk.tell(f"build {number}")
        desk.service.start()
        try:
            until(lambda: len(receiver.got) == 6, "the other receiver is told")
            assert len(stuck.got) <= 2
        finally:
            stuck.hold.set()
            desk.service.stop()
    assert not [one for one in threading.enumerate() if one.name.startswith("notif")]
    assert {one["state"] for one in desk.deliveries(webhook="chat")} == {"delivered"}


def test_a_test_is_sent_at_once_and_to_one_alone(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver, events=["campaign.done"])
    desk.site.services.notifications = desk.service
    desk.service.start()
    try:
        sent = desk.call("POST", "/webhooks/chat/test", status=202)
        until(lambda: desk.call("GET", f"/deliveries/{sent['id']}")["state"] == "delivered", "the test is delivered")
    finally:
        desk.service.stop()
    assert receiver.verified(SECRET)["type"] == "webhook.test"


def test_what_was_being_sent_when_the_server_was_killed_is_sent_again(desk: Desk, receiver: Receiver) -> None:
    desk.add(receiver)
    desk.tell()
    desk.service.collect()
    assert len(desk.service._claim()) == 1  # and then it is killed
    after = desk_of(desk.site, desk.site.services.settings)
    assert after.round() == 0
    desk.site.clock.pass_s(121)
    assert after.round() == 1
    assert after.deliveries()[0]["state"] == "delivered"


# --- builds -----------------------------------------------------------------------------------------------------------


def test_a_build_that_fails_is_told(desk: Desk, receiver: Receiver) -> None:
    site = desk.site
    desk.add(receiver)
    assert site.push().status_code == 201
    job = site.lease("onnxruntime-*").json()
    report = {"target": job["target"], "outcome": "failed", "reason": "the graph has a cycle"}
    url = f"/api/v1/jobs/{job['id']}/finish"
    answer = site.client.post(url, json={"lease": job["lease"], "report": report}, headers=site.as_("worker"))
    assert answer.is_success, answer.text
    desk.round()
    data = receiver.verified(SECRET)["data"]
    assert data["summary"] == "digits 1.0: onnxruntime-fp32 could not be built: the graph has a cycle"
    assert (data["model"], data["target"]) == ("digits", "onnxruntime-fp32")


# --- e-mail -----------------------------------------------------------------------------------------------------------


@dataclass
class Post:
    """A small SMTP server: EHLO, STARTTLS, AUTH PLAIN, MAIL, RCPT, DATA; keeps what it takes."""

    port: int = 0
    letters: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    refuse: str = ""  # what to answer to RCPT


@contextmanager
def _post_office(context: ssl.SSLContext | None = None, *, from_start: bool = False) -> Iterator[Post]:
    office = Post()
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = from_start

        async def say(words: str) -> None:
            writer.write(words.encode() + b"\r\n")
            await writer.drain()

        await say("220 post.example ESMTP")
        while line := (await reader.readline()).decode().strip():
            word = line.split(" ")[0].upper()
            if word == "EHLO":
                offers = ["AUTH PLAIN", *(["STARTTLS"] if context is not None and not secure else [])]
                await say("\r\n".join(["250-post.example", *(f"250-{one}" for one in offers[1:]), f"250 {offers[0]}"]))
            elif word == "STARTTLS":
                await say("220 go on")
                assert context is not None
                await writer.start_tls(context)
                secure = True
            elif word == "AUTH":
                office.logins.append(base64.b64decode(line.split(" ")[2]).decode())
                await say("235 in")
            elif word == "RCPT" and office.refuse:
                await say(office.refuse)
            elif word == "DATA":
                await say("354 go on")
                letter = (await reader.readuntil(b"\r\n.\r\n")).decode()
                office.letters.append(letter)
                office.secured.append(secure)
                await say("250 taken")
            elif word == "QUIT":
                await say("221 bye")
                break
            else:
                await say("250 ok")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if from_start else None)
        office.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield office
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_e_mail_is_handed_to_the_mail_server(site: Site, tmp_path: Path, security: str) -> None:
    served, trusting = _tls(tmp_path)
    context = None if security == "none" else served
    (tmp_path / "password").write_text("a secret of the mail server\n")
    with _post_office(context, from_start=security == "tls") as office:
        settings = Settings(
            data=tmp_path,
            smtp_host="127.0.0.1",
            smtp_port=office.port,
            smtp_security=security,
            smtp_user="covey",
            smtp_password_file=str(tmp_path / "password"),
            mail_from="covey@fleet.example",
            mail_to=("ops@factory.example",),
            mail_events=("build.failed",),
        )
        desk = desk_of(site, settings, mail_context=trusting)
        desk.tell()
        assert desk.round() == 1
        (letter,) = office.letters
        assert office.secured == [security != "none"]
    assert office.logins == ["\0covey\0a secret of the mail server"]
    for line in (
        "From: covey@fleet.example",
        "To: ops@factory.example",
        "Subject: [Covey] digits 1.0: it could not be built",
        "Auto-Submitted: auto-generated",
        "https://fleet.example/campaigns/digits%201.0",
    ):
        assert line in letter.splitlines()
    (delivery,) = desk.deliveries()
    assert (delivery["recipient"], delivery["state"]) == ("ops@factory.example", "delivered")
    assert f"Message-ID: <{delivery['message']}@fleet.example>" in letter


def test_an_address_that_is_refused_for_good_is_given_up(site: Site, tmp_path: Path) -> None:
    with _post_office() as office:
        settings = Settings(
            data=tmp_path,
            smtp_host="127.0.0.1",
            smtp_port=office.port,
            smtp_security="none",
            mail_to=("ops@factory.example",),
            mail_events=("build.failed",),
        )
        desk = desk_of(site, settings)
        office.refuse = "450 the mailbox is full"
        desk.tell()
        desk.round()
        assert (desk.deliveries()[0]["state"], desk.deliveries()[0]["error"]) == ("pending", "450 the mailbox is full")
        office.refuse = "550 no such mailbox"
        desk.tell("build 2")
        desk.round()
        assert (desk.deliveries()[0]["state"], desk.deliveries()[0]["error"]) == ("dead", "550 no such mailbox")


def test_a_subject_cannot_bring_headers_of_its_own(tmp_path: Path) -> None:
    with _post_office() as office:
        settings = Settings(data=tmp_path, smtp_host="127.0.0.1", smtp_port=office.port, smtp_security="none")
        letter = mail.Letter("msg_1", "a@x.example", "a\r\nBcc: b@x.example\nX: 1", "words\n", 0)
        Mailer(settings).send(letter)
    headers = office.letters[0].split("\r\n\r\n")[0].splitlines()
    assert not [line for line in headers if line.startswith(("Bcc", "X:"))]
    assert "Subject: a Bcc: b@x.example X: 1" in headers


def test_a_mail_server_that_is_not_there_is_tried_again(site: Site, tmp_path: Path) -> None:
    with _post_office() as office:
        port = office.port
    settings = Settings(
        data=tmp_path, smtp_host="127.0.0.1", smtp_port=port, mail_to=("a@x.example",), mail_events=("build.failed",)
    )
    desk = desk_of(site, settings)
    desk.tell()
    desk.round()
    assert desk.deliveries()[0]["state"] == "pending"
    assert "refused" in desk.deliveries()[0]["error"]
    with site.services.database.reading() as session:
        assert session.scalars(select(Delivery.attempts)).one() == 1


# --- what the tests above stand on --------------------------------------------------------------------------------------


def _tls(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server at 127.0.0.1, and of whoever trusts its authority."""
    authority = FleetCA.load_or_create(folder / "ca", time.time_ns() // 1_000_000)
    pair = authority.server_certificate(["127.0.0.1"], time.time_ns() // 1_000_000)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(pair.certificate, pair.key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=authority.ca_pem)
    return served, trusting


@contextmanager
def _dripping(stop: threading.Event) -> Iterator[str]:
    """A server that sends a header for ever, a byte at a time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not stop.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    stop.set()
    thread.join()
    listener.close()
