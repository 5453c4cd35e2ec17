"""Renewal where the server's HTTPS port is out of reach: which way is taken when, and which answers count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from covey_agent.credentials import Credentials
from covey_agent.errors import EnrolmentError
from covey_agent.identity import save_identity
from covey_agent.keys import make_key_and_request
from covey_agent.renewal_relay import RenewalRelay
from covey_agent.renewing import Asker, Failed, Granted, Refused, Undecided
from covey_contract.enrolment import Broker, EnrolResponse, RenewReply, RenewRequest, renewal_statement
from covey_contract.signing import Trust
from covey_hil.testing.authority import Authority

DEVICE = "press-7"
NOW_MS = 1_800_000_000_000
NOWHERE = "http://127.0.0.1:1"


# --- the relay --------------------------------------------------------------------------------------------------------


def request() -> RenewRequest:
    return RenewRequest(certificate_pem="c", csr_pem="r", proof=b"p")


def test_the_first_answer_to_the_request_under_way_counts_and_no_other() -> None:
    relay = RenewalRelay(lambda asked: answer(asked), wait_s=5.0)

    def answer(asked: RenewRequest) -> bool:
        relay.take(RenewReply(id="another", status=403))
        relay.take(RenewReply(id="", status=403))
        relay.take(RenewReply(id=asked.id, status=200, certificate_pem="first"))
        relay.take(RenewReply(id=asked.id, status=403))
        return True

    relay.take(RenewReply(id="", status=403))  # unasked
    assert relay.ask(request()).certificate_pem == "first"


def test_each_request_has_an_id_of_its_own_and_late_answers_are_ignored() -> None:
    asked: list[RenewRequest] = []

    def send(message: RenewRequest) -> bool:
        if asked:  # the answer to the one before
            relay.take(RenewReply(id=asked[-1].id, status=403))
        asked.append(message)
        return True

    relay = RenewalRelay(send, wait_s=0.0)
    for _ in range(3):
        with pytest.raises(EnrolmentError, match="no answer came over MQTT"):
            relay.ask(request())
    assert len({one.id for one in asked}) == 3
    assert "" not in {one.id for one in asked}


def test_without_a_session_nothing_is_waited_for() -> None:
    relay = RenewalRelay(lambda _: False, wait_s=60.0)
    with pytest.raises(EnrolmentError, match="no session"):
        relay.ask(request())


def test_an_answer_from_the_loops_thread_ends_the_wait() -> None:
    def send(asked: RenewRequest) -> bool:
        threading.Timer(0.05, relay.take, [RenewReply(id=asked.id, status=202, detail="wait")]).start()
        return True

    relay = RenewalRelay(send, wait_s=30.0)
    assert relay.ask(request()).status == 202


# --- the ways ---------------------------------------------------------------------------------------------------------


class World:
    """A device whose session is played, and what was asked over it."""

    def __init__(self, folder: Path, ca: Authority) -> None:
        self.ca, self.folder = ca, folder / "identity"
        self.asked: list[RenewRequest] = []
        self.reply: Callable[[RenewRequest], RenewReply | None] = self.sign
        key, csr = make_key_and_request(None, DEVICE)
        response = EnrolResponse(
            device=DEVICE,
            certificate_pem=ca.device(csr, DEVICE, NOW_MS, 90),
            ca_pem=ca.pem,
            broker=Broker(host="broker.example", port=8883),
            trust=Trust(release=(), director=()),
        )
        save_identity(self.folder, NOWHERE, key, response, None)
        self.credentials = Credentials(self.folder)
        self.relay = RenewalRelay(self.send, wait_s=0.0)

    def asker(self, server: str = NOWHERE) -> Asker:
        return Asker(DEVICE, server, self.folder, self.credentials, self.relay.ask)

    def send(self, request: RenewRequest) -> bool:
        self.asked.append(request)
        if (reply := self.reply(request)) is not None:
            self.relay.take(reply)
        return True

    def sign(self, request: RenewRequest) -> RenewReply:
        """Only what the key of the certificate in use has signed."""
        held = x509.load_pem_x509_certificate(request.certificate_pem.encode())
        public = held.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        statement = renewal_statement(request.certificate_pem, request.csr_pem)
        public.verify(request.proof, statement, ec.ECDSA(hashes.SHA256()))
        assert request.certificate_pem.encode() == self.credentials.in_use.certificate.read_bytes()
        certificate = self.ca.device(request.csr_pem, DEVICE, NOW_MS, 90)
        return RenewReply(id=request.id, status=200, certificate_pem=certificate)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def world(tmp_path: Path, ca: Authority) -> World:
    return World(tmp_path, ca)


@pytest.mark.parametrize("expired", [False, True])
def test_where_https_is_out_of_reach_the_signed_request_goes_over_mqtt(world: World, expired: bool) -> None:
    """Also where the device's own clock says that it has expired: the broker took its certificate, and the server goes by its own."""
    outcome = world.asker().ask(NOW_MS, expired=expired)
    assert isinstance(outcome, Granted)
    assert outcome.key_pem == world.credentials.key_to_ask_with()
    assert len(world.asked) == 1


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (202, Undecided, "an operator is to approve (202)"),
        (403, Refused, "an operator is to approve (403)"),
        (429, Failed, "the server refuses: an operator is to approve (429)"),
        (503, Failed, "the server refuses: an operator is to approve (503)"),
    ],
)
def test_what_the_server_says_over_mqtt_means_what_it_means_over_https(
    world: World, status: int, kind: type[Undecided | Refused | Failed], words: str
) -> None:
    world.reply = lambda asked: RenewReply(id=asked.id, status=status, detail="an operator\nis to approve")
    outcome = world.asker().ask(NOW_MS, expired=False)
    assert isinstance(outcome, kind)
    assert outcome.words == words


def test_what_is_no_certificate_for_this_key_is_not_believed(world: World) -> None:
    _, other = make_key_and_request(None, DEVICE)
    for pem in ("", "rubbish", world.ca.device(other, DEVICE, NOW_MS, 90)):
        world.reply = lambda asked, pem=pem: RenewReply(id=asked.id, status=200, certificate_pem=pem)  # type: ignore[misc]
        assert isinstance(world.asker().ask(NOW_MS, expired=False), Failed)
    assert world.credentials.on_trial is None


def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_key(world: World) -> None:
    world.reply = lambda _: None
    lost = world.asker().ask(NOW_MS, expired=False)
    assert isinstance(lost, Failed)
    assert "cannot be reached" in lost.words
    assert "no answer came over MQTT" in lost.words
    key = world.credentials.key_to_ask_with()
    world.reply = world.sign
    outcome = world.asker().ask(NOW_MS, expired=False)
    assert isinstance(outcome, Granted)
    assert outcome.key_pem == key
    # A late answer to the first is for the same key, and has another id.
    assert world.asked[0].id != world.asked[1].id


class Site(ThreadingHTTPServer):
    """Something that answers at the server's address, always the same."""

    def __init__(self, status: int, body: bytes) -> None:
        self.posted: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                site.posted.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    status, body = request.param
    with Site(status, body) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("site", [(202, b"{}"), (403, b"{}"), (422, b"{}"), (429, b"{}")], indirect=True)
def test_where_the_server_answers_the_broker_is_not_asked_too(world: World, site: Site) -> None:
    outcome = world.asker(site.url).ask(NOW_MS, expired=False)
    assert not isinstance(outcome, Granted)
    assert site.posted == ["/api/v1/renew"]
    assert world.asked == []


@pytest.mark.parametrize(
    "site", [(404, b"nothing here"), (502, b"no upstream"), (200, b"<html>log in</html>")], indirect=True
)
def test_what_another_answers_at_its_address_is_no_answer(world: World, site: Site) -> None:
    assert isinstance(world.asker(site.url).ask(NOW_MS, expired=False), Granted)
    assert len(site.posted) == len(world.asked) == 1


def test_the_id_is_no_part_of_what_is_signed(world: World) -> None:
    """So that one signature is good for both ways, and no broker can make it another request's."""
    assert isinstance(world.asker().ask(NOW_MS, expired=False), Granted)
    assert world.sign(msgspec.structs.replace(world.asked[0], id="x")).status == 200
