"""E-mail from end to end: a real SMTP server, with and without TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from covey_server.db.tables import Delivery
from covey_server.notifications import mail
from covey_server.notifications.mail import Mailer
from covey_server.settings import Settings
from tests.unit.server_platform.notified import desk_of, post_office, tls_of

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_e_mail_is_handed_to_the_mail_server(site: Site, tmp_path: Path, security: str) -> None:
    served, trusting = tls_of(tmp_path)
    context = None if security == "none" else served
    (tmp_path / "password").write_text("a secret of the mail server\n")
    with post_office(context, from_start=security == "tls") as office:
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
    with post_office() as office:
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
    with post_office() as office:
        settings = Settings(data=tmp_path, smtp_host="127.0.0.1", smtp_port=office.port, smtp_security="none")
        letter = mail.Letter("msg_1", "a@x.example", "a\r\nBcc: b@x.example\nX: 1", "words\n", 0)
        Mailer(settings).send(letter)
    headers = office.letters[0].split("\r\n\r\n")[0].splitlines()
    assert not [line for line in headers if line.startswith(("Bcc", "X:"))]
    assert "Subject: a Bcc: b@x.example X: 1" in headers


def test_a_mail_server_that_is_not_there_is_tried_again(site: Site, tmp_path: Path) -> None:
    with post_office() as office:
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
