"""Whom the server tells: a real HTTP server and a real SMTP server that keep what they are sent, and a service that sends when told to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey_server.fleet.ca import FleetCA
from covey_server.notifications import outbox
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
def receiver_at(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
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


@contextmanager
def dripping(stop: threading.Event) -> Iterator[str]:
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


@dataclass
class Post:
    """A small SMTP server: EHLO, STARTTLS, AUTH PLAIN, MAIL, RCPT, DATA; keeps what it takes."""

    port: int = 0
    letters: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    refuse: str = ""  # what to answer to RCPT


@contextmanager
def post_office(context: ssl.SSLContext | None = None, *, from_start: bool = False) -> Iterator[Post]:
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


def tls_of(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server at 127.0.0.1, and of whoever trusts its authority."""
    authority = FleetCA.load_or_create(folder / "ca", time.time_ns() // 1_000_000)
    pair = authority.server_certificate(["127.0.0.1"], time.time_ns() // 1_000_000)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(pair.certificate, pair.key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=authority.ca_pem)
    return served, trusting
