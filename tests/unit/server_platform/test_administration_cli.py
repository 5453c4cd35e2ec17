"""`covey person`, `token`, `webhook`, `mail` and `audit`, as typed, against the real API."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from covey_client.cli import main
from covey_server import audit
from covey_server.audit import Actor
from covey_server.notifications.mail import Mailer
from covey_server.notifications.outbox import Mailing
from covey_server.notifications.sealing import Seal
from covey_server.notifications.sending import Sender
from covey_server.notifications.service import NotificationService
from covey_server.people import passwords
from covey_server.people.passwords import Cost
from covey_server.settings import Settings

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

PASSWORD = "nine ducks cross the yard"


class Covey:
    """The command, as somebody with the role admin or with the token that is given."""

    def __init__(self, site: Site, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.url = str(site.client.base_url)
        self._folder, self._capture = folder, capture
        self.token(site.secrets["admin"])

    def token(self, secret: str) -> None:
        (self._folder / "token").write_text(secret)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main(["--server", self.url, "--token-file", str(self._folder / "token"), *words])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def good(self, *words: str) -> str:
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        found, out, err = self(*words, "--json")
        assert found == code, err + out
        return json.loads(out)


@pytest.fixture
def covey(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Covey:
    cheap = Cost(log2_n=4, r=1, p=1)
    monkeypatch.setattr(passwords, "COST", cheap)
    monkeypatch.setattr(passwords.hashed, "__defaults__", (cheap,))
    monkeypatch.setattr(passwords.outdated, "__defaults__", (cheap,))
    monkeypatch.setenv("COVEY_CONFIG", str(tmp_path / "config"))
    return Covey(site, tmp_path, capsys)


def _typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_person_from_invitation_to_disabled(
    site: Site, covey: Covey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = covey.good("person", "add", "anna", "--role", "operator", "--email", "anna@factory.example")
    assert out.startswith(f"{covey.url}/invitation?code=")
    assert "invited" in covey.good("person", "list")
    code = out.strip().partition("code=")[2]
    form = {"code": code, "password": PASSWORD, "again": PASSWORD}
    assert site.client.post("/invitation", data=form).status_code == 303
    site.client.cookies.clear()
    assert "active" in covey.good("person", "list")

    _typed(monkeypatch, PASSWORD)
    code_, out, err = main(["login", covey.url, "--name", "anna"]), *covey._capture.readouterr()
    assert (code_, err) == (0, "")
    assert "as anna (operator)" in out
    own = json.loads((tmp_path / "config" / "client.json").read_text())["token"]
    covey.token(own)
    made = covey.json("token", "create", "anna-ci", "--role", "viewer", "--model", "digits", "--ttl", "2h")
    assert (made["owner"], made["models"]) == ("anna", ["digits"])
    assert covey("token", "create", "x", "--role", "admin")[0] == 1
    assert {one["name"] for one in covey.json("token", "list")["items"]} >= {"anna-ci"}
    _typed(monkeypatch, PASSWORD, "ten geese walk to the pond", "ten geese walk to the pond")
    assert "changed" in covey.good("person", "password")
    _typed(monkeypatch, PASSWORD, "one", "two")
    assert covey("person", "password")[0] == 2
    covey.good("person", "logout")
    assert covey("whoami")[0] == 1

    covey.token(site.secrets["admin"])
    assert covey.good("person", "set-role", "anna", "approver") == "anna has the role approver\n"
    assert covey.json("person", "set-mail", "anna", "--notify", "campaign.halted")["notify"] == ["campaign.halted"]
    assert covey.good("person", "disable", "anna") == "anna is disabled\n"
    assert "disabled" in covey.good("person", "list")
    assert covey.good("person", "enable", "anna") == "anna may log in\n"
    assert "/invitation?code=" in covey.good("person", "invite", "anna")
    assert covey.good("token", "revoke", "anna-ci") == "anna-ci is revoked\n"
    assert "revoked" in covey.good("token", "list")
    assert covey("person", "set-role", "nobody", "viewer")[0] == 1


# --- the audit log ----------------------------------------------------------------------------------------------------


def _fill(site: Site, *what: tuple[str, str]) -> None:
    for action, thing in what:
        with site.services.database.session() as session:
            audit.record(session, Actor("anna", "operator", "api ::1"), action, thing, {"n": 1}, site.clock())
        site.clock.pass_s(60)


def test_the_log_is_filtered(site: Site, covey: Covey) -> None:
    _fill(site, ("campaign.create", "a"), ("campaign.start", "a"), ("campaign.start", "b"), ("group.set", "a"))

    def found(*words: str) -> list[tuple[str, str]]:
        return [(one["action"], one["object"]) for one in covey.json("audit", "list", *words)["items"]]

    assert found("--action", "campaign.start") == [("campaign.start", "b"), ("campaign.start", "a")]
    assert len(found("--action", "campaign.")) == 3
    assert found("--object", "a", "-n", "1") == [("group.set", "a")]
    assert found("--who", "bert") == []
    assert found("--until", "2027-01-15T08:01") == [("campaign.create", "a")]
    assert found("--since", "2027-01-15T08:03:00+00:00") == [("group.set", "a")]
    table = covey.good("audit", "list", "--who", "anna")
    assert "api ::1" in table


def test_an_export_is_checked_without_the_server(site: Site, covey: Covey, tmp_path: Path) -> None:
    _fill(site, *[("group.set", f"g{n}") for n in range(5)])
    first, second = tmp_path / "first.ndjson", tmp_path / "second.ndjson"
    assert covey.good("audit", "export", str(first)).startswith(f"5 entries in {first}")
    _fill(site, ("group.set", "later"))
    covey.good("audit", "export", str(second))
    assert covey.good("audit", "verify") == "whole: 6 entries\n"
    assert covey.good("audit", "verify", "--since", str(first)) == "whole: 6 entries\n"
    covey.url = "http://127.0.0.1:9"  # nobody answers there
    assert covey.good("audit", "verify", str(second)) == "whole: 6 entries\n"
    assert covey.good("audit", "verify", str(second), "--since", str(first)) == "whole: 6 entries\n"
    # The end was cut off: the chain alone does not show it, an earlier export does.
    assert covey("audit", "verify", str(first), "--since", str(second))[:2] == (1, "broken: entry 6 was removed\n")


LINES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "changed": (lambda lines: [*lines[:2], lines[2].replace("g2", "gX"), *lines[3:]], "entry 3 was changed"),
    "removed": (lambda lines: [*lines[:2], *lines[3:]], "entry 3 was removed"),
    "the first": (lambda lines: lines[1:], "entry 1 was removed"),
    "twice": (lambda lines: [*lines[:3], lines[1], *lines[3:]], "entry 2 was inserted"),
    "swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], "entry 1 was removed"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_tampered_export_is_told(site: Site, covey: Covey, tmp_path: Path, name: str) -> None:
    tamper, words = LINES[name]
    _fill(site, *[("group.set", f"g{n}") for n in range(5)])
    file = tmp_path / "log.ndjson"
    covey.good("audit", "export", str(file))
    file.write_text("".join(tamper(file.read_text().splitlines(keepends=True))))
    code, out, _ = covey("audit", "verify", str(file))
    assert (code, out) == (1, f"broken: {words}\n")
    verdict = covey.json("audit", "verify", str(file), code=1)
    assert f"entry {verdict['first_bad']} was {verdict['kind']}" == words
    assert covey("audit", "verify", "--since", str(file))[0] == 1  # what is broken itself proves nothing


@pytest.mark.parametrize("text", ["nonsense\n", '{"id": 1}\n', "\x00" * 2_000_000])
def test_what_is_no_export_is_one_line(covey: Covey, tmp_path: Path, text: str) -> None:
    file = tmp_path / "log.ndjson"
    file.write_text(text)
    code, _, err = covey("audit", "verify", str(file))
    assert (code, err.count("\n")) == (1, 1)
    assert "line 1" in err


# --- webhooks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[str]:
    """The address of somebody who takes everything but what is sent to /no."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500 if self.path == "/no" else 204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


@pytest.fixture
def telling(site: Site, tmp_path: Path) -> Iterator[None]:
    """The notification service runs."""
    use = site.services
    use.settings = settings = Settings(data=tmp_path, webhook_private=True)
    use.seal = Seal.load_or_create(tmp_path)
    sender = Sender(Mailer(settings), private=True, timeout_s=5)
    use.notifications = NotificationService(use.database, site.clock, use.bus, use.seal, sender, Mailing())
    use.notifications.start()
    yield
    use.notifications.stop()


@pytest.mark.usefixtures("telling")
def test_a_webhook_from_added_to_removed(covey: Covey, receiver: str) -> None:
    secret = covey.good("webhook", "add", "chat", f"{receiver}/yes", "--event", "campaign.halted").strip()
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/=]{44}", secret)
    assert "campaign.halted" in covey.good("webhook", "list")
    assert covey.good("webhook", "test", "chat").startswith("delivered in ")
    other = covey.good("webhook", "rotate", "chat", "--overlap", "1h").strip()
    assert other != secret
    assert (
        covey.good("webhook", "set", "chat", "--url", f"{receiver}/no", "--event", "all")
        == "chat: active; all events\n"
    )
    code, out, _ = covey("webhook", "test", "chat")
    assert (code, out) == (1, "not delivered: answered 500\n")
    pending = covey.json("webhook", "deliveries", "--state", "pending")["items"]
    assert [one["webhook"] for one in pending] == ["chat"]
    assert covey.good("webhook", "retry", str(pending[0]["id"])) == f"delivery {pending[0]['id']} is tried again\n"
    assert "disabled" in covey.good("webhook", "set", "chat", "--disable")
    assert covey("webhook", "test", "chat")[0] == 1
    assert covey("webhook", "set", "chat")[0] == 2
    assert covey("webhook", "add", "bad", "ftp://x.example/")[0] == 1
    assert covey("mail", "test", "ops@factory.example")[0] == 1  # no mail server is set
    assert covey.good("webhook", "remove", "chat") == "chat is removed\n"
    assert covey.json("webhook", "list") == {"items": []}
