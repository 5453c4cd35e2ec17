"""Parts of telling others: signatures, destinations, retries, sealing, the outbox; each alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from covey_hil.testing.rows import add_campaign, add_version
from covey_server.db.engine import Database
from covey_server.db.tables import CampaignEvent, Delivery, Notice, Person, Webhook
from covey_server.errors import StartError
from covey_server.notifications import destination, outbox, retries, sealing, signing
from covey_server.notifications.destination import BadDestinationError
from covey_server.notifications.events import EVENTS, OF_CAMPAIGNS
from covey_server.notifications.outbox import Mailing
from covey_server.settings import Settings

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import FakeClock

# --- signatures -------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The specification's own example, and the scheme written out once more."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    key, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}'
    made = signing.signature([secret], key, 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    signed = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body
    expected = hmac.new(base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), signed, hashlib.sha256).digest()
    assert made == f"v1,{base64.b64encode(expected).decode()}"


def test_while_a_secret_is_changed_both_sign() -> None:
    first, second = signing.new_secret(), signing.new_secret()
    both = signing.signature([second, first], "msg_1", 1, b"{}").split(" ")
    assert both == [signing.signature([one], "msg_1", 1, b"{}") for one in (second, first)]
    assert len(signing.key_of(first)) == 32


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_abc", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_äääääääää"])
def test_what_is_no_secret_is_told(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        signing.key_of(secret)


# --- destinations -----------------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.255.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104 - a private address like the others
    "255.255.255.255",
    "224.0.0.1",
    "198.18.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:db8::1",
    "2001:0:0:0:0:0:f5ff:fffe",
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_in_every_disguise(address: str) -> None:
    assert not destination.is_public(ipaddress.ip_address(address))
    target = destination.parse("https://hooks.example/", private=False)
    with pytest.raises(BadDestinationError, match="private address"):
        destination.addresses(target, private=False, resolve=lambda *_: [PUBLIC[0], address])
    assert destination.addresses(target, private=True, resolve=lambda *_: [address]) == [address]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    target = destination.parse("https://hooks.example/", private=False)
    assert destination.addresses(target, private=False, resolve=lambda *_: [address]) == [address]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "http://hooks.example/",
        "https:///path",
        "https://anna:secret@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example:0/",
        "https://hooks.example:99999/",
        "https://hooks.example/a b",
        "https://hooks.example\\@evil.example/",
        "https://hooks.example/\r\nHost: evil",
        "https://[::1/",
        "https://h\u00f6oks.example/",
        "https://hooks.example/" + "x" * 2048,
    ],
)
def test_what_is_no_address_for_webhooks_is_refused(url: str) -> None:
    with pytest.raises(BadDestinationError):
        destination.parse(url, private=False)


def test_the_authority_is_what_the_receiver_expects() -> None:
    def authority(url: str) -> str:
        return destination.parse(url, private=True).authority

    assert authority("https://hooks.example:443/") == "hooks.example"
    assert authority("http://hooks.example:8080/") == "hooks.example:8080"
    assert authority("http://[::1]:8080/") == "[::1]:8080"


# --- retries ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.integers(0, 10**9)))
def test_pauses_are_bounded_and_end(attempts: int, chance: float, retry_after: int | None) -> None:
    pause = retries.next_pause_ms(attempts, lambda: chance, retry_after)
    if attempts >= retries.ATTEMPTS:
        assert pause is None
        return
    assert pause is not None
    least = max(retries.PAUSES_S[attempts - 1], min(retry_after or 0, 86_400)) * 1000
    assert least <= pause <= least * 1.1 + 1


# --- sealing ----------------------------------------------------------------------------------------------------------


def test_a_sealed_secret_opens_only_with_its_key_and_in_its_place(tmp_path: Path) -> None:
    seal = sealing.Seal.load_or_create(tmp_path)
    sealed = seal.seal("whsec_x", "webhook a")
    assert b"whsec_x" not in sealed
    assert sealing.Seal.load_or_create(tmp_path).open(sealed, "webhook a") == "whsec_x"
    assert stat.S_IMODE((tmp_path / sealing.FILE).stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="another key"):
        seal.open(sealed, "webhook b")
    with pytest.raises(ValueError, match="another key"):
        sealing.Seal(b"\1" * 32).open(sealed, "webhook a")
    (tmp_path / sealing.FILE).write_bytes(b"short")
    with pytest.raises(ValueError, match="no key"):
        sealing.Seal.load_or_create(tmp_path)


# --- the outbox -------------------------------------------------------------------------------------------------------

Log = Callable[..., int]


@pytest.fixture
def log(any_database: Database, clock: FakeClock) -> Log:
    """Writes lines into a campaign's log; the id of the last."""
    with any_database.session() as session:
        version = add_version(session, "1.0")
        campaign = add_campaign(session, version.id)
        campaign_id = campaign.id

    def write(*kinds: str, detail: dict[str, Any] | None = None) -> int:
        last = 0
        with any_database.session() as session:
            for kind in kinds:
                row = CampaignEvent(
                    campaign_id=campaign_id,
                    at_ms=clock(),
                    kind=kind,
                    who="campaign engine",
                    message=f"it {kind}",
                    detail=detail or {},
                )
                session.add(row)
                session.flush()
                last = row.id
        return last

    return write


def _collect(database: Database, now_ms: int, mailing: Mailing | None = None) -> list[str]:
    """One round; the events told, oldest first."""
    with database.session() as session:
        before = session.scalar(select(Notice.id).order_by(Notice.id.desc()).limit(1)) or 0
        outbox.tell_of_campaigns(session, now_ms)
        outbox.address(session, mailing or Mailing(), now_ms)
    with database.reading() as session:
        return list(session.scalars(select(Notice.event).where(Notice.id > before).order_by(Notice.id)))


def test_lines_of_a_campaigns_log_are_told_once(any_database: Database, clock: FakeClock, log: Log) -> None:
    log("created", "started")
    assert _collect(any_database, clock()) == []  # it was there before anybody listened
    log("assigned", "gate_breached", "halted")
    assert _collect(any_database, clock()) == ["campaign.gate_breached", "campaign.halted"]
    assert _collect(any_database, clock()) == []
    with any_database.reading() as session:
        assert not outbox.has_news(session)
        notice = session.scalars(select(Notice).where(Notice.event == "campaign.halted")).one()
    assert notice.summary == "digits-1.0: it halted"
    assert (notice.data["campaign"], notice.data["version"]) == ("digits-1.0", "1.0")


def test_a_line_that_is_committed_late_is_told_too(any_database: Database, clock: FakeClock, log: Log) -> None:
    """As on PostgreSQL, where ids are given out before they are committed."""
    _collect(any_database, clock())
    late = log("halted")
    log("done")
    with any_database.session() as session:
        row = session.get_one(CampaignEvent, late)
        kept = {name: getattr(row, name) for name in ("campaign_id", "at_ms", "kind", "who", "message", "detail")}
        session.execute(delete(CampaignEvent).where(CampaignEvent.id == late))
    assert _collect(any_database, clock()) == ["campaign.done"]
    with any_database.session() as session:
        session.add(CampaignEvent(id=late, **kept))
    assert _collect(any_database, clock()) == ["campaign.halted"]
    clock.pass_s(3601)
    with any_database.session() as session:
        session.execute(delete(Delivery))
        session.execute(delete(Notice))
    assert _collect(any_database, clock()) == []  # what is long past is not told again when its notice is forgotten


def test_more_than_one_round_can_take(any_database: Database, clock: FakeClock, log: Log) -> None:
    _collect(any_database, clock())
    log(*["stage_passed"] * 450)
    told = [len(_collect(any_database, clock())) for _ in range(4)]
    assert told == [200, 200, 50, 0]


def test_evidence_that_is_too_large_is_left_out(any_database: Database, clock: FakeClock, log: Log) -> None:
    _collect(any_database, clock())
    log("halted", detail={"gates": ["x" * 100] * 1000})
    _collect(any_database, clock())
    with any_database.reading() as session:
        assert session.scalars(select(Notice)).one().data["detail"] == {"left_out": True}


def test_whoever_wants_an_event_gets_it_once(any_database: Database, clock: FakeClock) -> None:
    with any_database.session() as session:
        common = {"url": "https://x.example/", "secret": b"", "created_ms": 1, "created_by": "anna"}
        session.add(Webhook(name="all", events=[], **common))
        session.add(Webhook(name="done", events=["campaign.done"], **common))
        session.add(Webhook(name="off", events=[], disabled_ms=1, **common))
        who = {"role": "viewer", "created_ms": 1, "created_by": "x"}
        session.add(Person(name="anna", email="anna@x.example", notify=["campaign.done"], **who))
        session.add(Person(name="bert", email="bert@x.example", notify=["campaign.halted"], **who))
        session.add(Person(name="carl", email="carl@x.example", notify=["campaign.done"], disabled_ms=1, **who))
        session.add(Person(name="dora", notify=["campaign.done"], **who))
    mailing = Mailing(("ops@x.example", "anna@x.example"), ("campaign.done",))

    def told(event: str) -> list[str]:
        with any_database.session() as session:
            assert outbox.tell(session, event, "words", {}, f"test {event}", clock())  # type: ignore[arg-type]
            assert not outbox.tell(session, event, "words", {}, f"test {event}", clock())  # type: ignore[arg-type]
        with any_database.session() as session:
            count = outbox.address(session, mailing, clock())
            assert outbox.address(session, mailing, clock()) == 0
        with any_database.reading() as session:
            rows = session.execute(
                select(Webhook.name, Delivery.recipient)
                .select_from(Delivery)
                .join(Notice, Notice.id == Delivery.notice_id)
                .outerjoin(Webhook, Webhook.id == Delivery.webhook_id)
                .where(Notice.event == event)
                .order_by(Delivery.id)
            ).all()
        assert len(rows) == count
        return [name or recipient or "" for name, recipient in rows]

    assert told("campaign.done") == ["all", "done", "ops@x.example", "anna@x.example"]
    assert told("campaign.halted") == ["all", "bert@x.example"]
    assert told("build.failed") == ["all"]


def test_a_notice_goes_with_the_change_that_it_tells_of(any_database: Database, clock: FakeClock) -> None:
    def fail() -> None:
        with any_database.session() as session:
            outbox.tell(session, "build.failed", "words", {}, "build 1", clock())
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError, match="the change failed"):
        fail()
    with any_database.reading() as session:
        assert session.scalars(select(Notice)).all() == []


def test_old_notices_are_forgotten_with_their_deliveries(any_database: Database, clock: FakeClock) -> None:
    mailing = Mailing(("ops@x.example",), ("build.failed",))
    for number in range(2):
        with any_database.session() as session:
            outbox.tell(session, "build.failed", "words", {}, f"build {number}", clock())
            outbox.address(session, mailing, clock())
        clock.pass_s(100)
    with any_database.session() as session:
        outbox.prune(session, clock() - 100_000)
    with any_database.reading() as session:
        assert [one.source for one in session.scalars(select(Notice))] == ["build 1"]
        assert len(session.scalars(select(Delivery)).all()) == 1


def test_the_documentation_names_every_event() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`((?:campaign|device|build)\.[a-z_]+)`", page))
    assert named == set(EVENTS) - {"webhook.test"}


def test_every_event_has_a_form_that_receivers_can_match() -> None:
    assert set(OF_CAMPAIGNS.values()) <= set(EVENTS)
    assert all(event.count(".") == 1 and event.islower() for event in EVENTS)
    assert len(set(EVENTS)) == len(EVENTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mail_to", ("nobody",)),
        ("mail_from", "a@b\nBcc: x@y"),
        ("mail_events", ("campaign.danced",)),
        ("smtp_security", "maybe"),
        ("smtp_port", -1),
        ("webhook_timeout_s", 0.0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(StartError, match=f"setting {name}: "):
        Settings(**{name: value})  # type: ignore[arg-type]
