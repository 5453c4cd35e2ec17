"""People: invited, logged in, throttled, demoted, disabled; and what their tokens may then still do."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from covey_server.db.engine import Database
from covey_server.db.tables import ConsoleSession, LoginAttempt, Person
from covey_server.errors import Conflict, TooMany, Unauthorized
from covey_server.people import directory, passwords, throttle
from covey_server.people.passwords import Cost
from covey_server.people.roles import ROLES, common, may
from covey_server.people.sessions import secret_hash

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import FakeClock, Site

PASSWORD = "nine ducks cross the yard"
OTHER = "ten geese walk to the pond"
CHEAP = Cost(log2_n=4, r=1, p=1)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that costs nothing to check; what is tested here is who gets in."""
    monkeypatch.setattr(passwords, "COST", CHEAP)
    monkeypatch.setattr(passwords.hashed, "__defaults__", (CHEAP,))
    monkeypatch.setattr(passwords.outdated, "__defaults__", (CHEAP,))


def add(site: Site, name: str, role: str, **more: object) -> httpx.Client:
    """A person who has accepted the invitation; the browser in which they did, to be closed."""
    made = site.client.post("/api/v1/people", json={"name": name, "role": role, **more}, headers=site.as_("admin"))
    assert made.status_code == 201, made.text
    browser = httpx.Client(base_url=site.client.base_url, timeout=60)
    form = {"code": made.json()["invitation"]["code"], "password": PASSWORD, "again": PASSWORD}
    answer = browser.post("/invitation", data=form)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text
    return browser


def log_in(site: Site, name: str, password: str = PASSWORD, **more: object) -> httpx.Response:
    return site.client.post("/api/v1/login", json={"name": name, "password": password, **more})


def bearer(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def csrf(site: Site, browser: httpx.Client) -> dict[str, str]:
    """The header that forms of this browser's session carry."""
    with site.services.database.reading() as session:
        held = session.scalars(select(ConsoleSession).order_by(ConsoleSession.created_ms.desc())).all()
    secret = browser.cookies["covey_session"]
    return {"X-CSRF-Token": next(one.csrf for one in held if one.secret_hash == secret_hash(secret))}


# --- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cheap")
def test_an_invitation_lets_its_person_choose_a_password_once(site: Site) -> None:
    made = site.client.post(
        "/api/v1/people",
        json={"name": "anna", "role": "operator", "email": "anna@factory.example"},
        headers=site.as_("admin"),
    ).json()
    assert (made["has_password"], made["role"]) == (False, "operator")
    assert log_in(site, "anna").status_code == 401
    code = made["invitation"]["code"]
    page = site.client.get("/invitation", params={"code": code})
    assert page.status_code == 200
    assert "anna" in page.text
    for password, again, words in ((PASSWORD, OTHER, "not the same"), ("short", "short", "at least 12")):
        answer = site.client.post("/invitation", data={"code": code, "password": password, "again": again})
        assert answer.status_code == 422
        assert words in answer.text
    form = {"code": code, "password": PASSWORD, "again": PASSWORD}
    with httpx.Client(base_url=site.client.base_url, timeout=60) as browser:
        answer = browser.post("/invitation", data=form)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert browser.get("/api/v1/me").json()["person"]["has_password"] is True
    again_page = site.client.post("/invitation", data=form)
    assert again_page.status_code == 401
    assert "used already" in again_page.text
    assert log_in(site, "anna").status_code == 201


@pytest.mark.usefixtures("cheap")
def test_an_invitation_ends_with_its_time_with_the_next_one_and_with_its_person(site: Site) -> None:
    admin = site.as_("admin")
    first = site.client.post("/api/v1/people", json={"name": "anna", "role": "viewer"}, headers=admin).json()
    second = site.client.post("/api/v1/people/anna/invitation", headers=admin).json()
    assert site.client.get("/invitation", params={"code": first["invitation"]["code"]}).status_code == 401
    assert site.client.get("/invitation", params={"code": second["code"]}).status_code == 200
    site.clock.pass_s(3 * 86_400 + 1)
    assert site.client.get("/invitation", params={"code": second["code"]}).status_code == 401
    third = site.client.post("/api/v1/people/anna/invitation", headers=admin).json()
    site.client.patch("/api/v1/people/anna", json={"disabled": True}, headers=admin)
    assert site.client.get("/invitation", params={"code": third["code"]}).status_code == 401
    assert site.client.post("/api/v1/people/anna/invitation", headers=admin).json()["code"] == "disabled"


@pytest.mark.usefixtures("cheap")
def test_a_browser_logs_in_by_name_and_password(site: Site) -> None:
    add(site, "anna", "viewer").close()
    with httpx.Client(base_url=site.client.base_url, timeout=60) as browser:
        assert 'name="password"' in browser.get("/login").text
        wrong = browser.post("/login", data={"name": "anna", "password": "wrong"})
        nobody = browser.post("/login", data={"name": "bert", "password": "wrong"})
        assert (wrong.status_code, nobody.status_code) == (401, 401)
        assert wrong.text.replace("anna", "NAME") == nobody.text.replace("bert", "NAME")
        answer = browser.post("/login", data={"name": "anna", "password": PASSWORD, "next": "//evil.example/"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert browser.get("/api/v1/whoami").json() == {"name": "anna", "role": "viewer"}
    entries = site.client.get("/api/v1/audit?action=console.login", headers=site.as_("viewer")).json()["items"]
    assert [one["who"] for one in entries] == ["anna", "anna"]
    assert entries[0]["origin"] == "console 127.0.0.1"


def test_checking_takes_the_same_work_for_whoever_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int, int]] = []
    scrypt = hashlib.scrypt

    def counted(password: bytes, *, n: int, r: int, p: int, **more: Any) -> bytes:
        done.append((n, r, p))
        return scrypt(password, n=n, r=r, p=p, **more)

    kept = passwords.hashed(PASSWORD)
    monkeypatch.setattr(hashlib, "scrypt", counted)
    assert passwords.fits(PASSWORD, kept)
    assert not passwords.fits(OTHER, kept)
    assert not passwords.fits(PASSWORD, None)
    assert done == [(1 << 15, 8, 3)] * 3


def test_the_cost_is_one_that_owasp_names_and_is_kept_with_the_hash() -> None:
    kept = passwords.hashed(PASSWORD)
    assert kept.startswith("scrypt$15$8$3$")
    assert not passwords.outdated(kept)
    cheap = passwords.hashed(PASSWORD, CHEAP)
    assert passwords.fits(PASSWORD, cheap)
    assert passwords.outdated(cheap)


def test_a_hash_of_another_cost_is_made_anew_at_login(database: Database, clock: FakeClock) -> None:
    with database.session() as session:
        person = directory.add(session, "anna", "viewer", "test", clock())
        directory.set_password(session, person, passwords.hashed(PASSWORD, CHEAP), clock())
    directory.authenticate(database, "anna", PASSWORD, "192.0.2.1", clock())
    with database.reading() as session:
        kept = directory.find(session, "anna").password
    assert kept is not None
    assert not passwords.outdated(kept)
    assert passwords.fits(PASSWORD, kept)


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("", "at least 12"),
        ("elevenchars", "at least 12"),
        ("x" * 257, "at most 256"),
        ("abababababababab", "repeats"),
        ("annalisa1234annalisa", "little more than the name"),
        ("twelve chars", ""),
        ("пароль из слов", ""),
    ],
)
def test_weak_passwords_are_told_why(password: str, problem: str) -> None:
    assert problem in passwords.weakness(password, "annalisa")
    assert bool(problem) == bool(passwords.weakness(password, "annalisa"))


@pytest.mark.usefixtures("cheap")
def test_the_same_characters_are_the_same_password_however_they_are_typed() -> None:
    kept = passwords.hashed("caf\u00e9 am marktplatz")
    assert passwords.fits("cafe\u0301 am marktplatz", kept)


# --- tried too often ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cheap")
def test_guessing_is_slowed_down_and_a_right_password_waits_too(site: Site) -> None:
    add(site, "anna", "viewer").close()
    for _ in range(5):
        assert log_in(site, "anna", "wrong").status_code == 401
        site.clock.pass_s(0.001)
    assert log_in(site, "anna", "wrong").status_code == 401
    answer = log_in(site, "anna")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert answer.json()["retry_after_s"] == 1
    page = site.client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert page.status_code == 429
    assert "Try again in 1 s" in page.text
    site.clock.pass_s(1)
    assert log_in(site, "anna").status_code == 201
    for _ in range(5):
        assert log_in(site, "anna", "wrong").status_code == 401  # it began anew


def _attempts(database: Database, clock: FakeClock, name: str, address: str, count: int) -> int:
    """How many of so many attempts in one second were let through."""
    passed = 0
    for _ in range(count):
        try:
            with database.session() as session:
                throttle.count_attempt(session, name, address, clock())
        except TooMany:
            continue
        passed += 1
    return passed


def test_names_and_addresses_are_counted_together_and_apart(database: Database, clock: FakeClock) -> None:
    assert _attempts(database, clock, "anna", "192.0.2.1", 50) == 6
    # Other names from there, until the address itself has had enough: 30 are free.
    assert sum(_attempts(database, clock, f"x{n}", "192.0.2.1", 3) for n in range(40)) == 25
    # The same name from elsewhere, until the name has had enough: 20 are free; its pause stays short.
    assert sum(_attempts(database, clock, "anna", f"198.51.100.{n}", 1) for n in range(40)) == 15
    clock.pass_s(30)
    assert _attempts(database, clock, "anna", "203.0.113.9", 1) == 1
    # One who has an IPv6 address has many.
    assert sum(_attempts(database, clock, "bert", f"2001:db8::{n:x}", 1) for n in range(40)) == 6


def test_pauses_grow_and_are_forgotten(database: Database, clock: FakeClock) -> None:
    assert [throttle.PAIR.pause_ms(n) for n in range(4, 10)] == [0, 0, 1000, 2000, 4000, 8000]
    assert throttle.PAIR.pause_ms(10**6) == 900_000
    _attempts(database, clock, "anna", "192.0.2.1", 20)
    clock.pass_s(3601)
    assert _attempts(database, clock, "anna", "192.0.2.1", 20) == 6
    with database.reading() as session:
        assert len(session.scalars(select(LoginAttempt)).all()) == 3


def test_what_is_typed_as_a_name_is_not_kept(database: Database, clock: FakeClock) -> None:
    with pytest.raises(Unauthorized):
        directory.authenticate(database, "my password by mistake", "x", "192.0.2.1", clock())
    with database.reading() as session:
        kept = str(session.execute(text("SELECT * FROM login_attempts")).all())
    assert "mistake" not in kept
    assert "192.0.2.1" not in kept


# --- out ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cheap")
def test_another_password_ends_ones_other_sessions(site: Site) -> None:
    with (
        closing(add(site, "anna", "viewer")) as browser,
        httpx.Client(base_url=site.client.base_url, timeout=60) as elsewhere,
    ):
        elsewhere.post("/login", data={"name": "anna", "password": PASSWORD})
        token = csrf(site, browser)
        change = {"current": "not it at all", "new": OTHER}
        wrong = browser.post("/api/v1/me/password", json=change, headers=token)
        assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong_password")
        weak = browser.post("/api/v1/me/password", json={"current": PASSWORD, "new": "short"}, headers=token)
        assert (weak.status_code, weak.json()["code"]) == (422, "weak_password")
        assert browser.post("/api/v1/me/password", json={"current": PASSWORD, "new": OTHER}).json()["code"] == "csrf"
        done = browser.post("/api/v1/me/password", json={"current": PASSWORD, "new": OTHER}, headers=token)
        assert done.status_code == 204
        assert browser.get("/api/v1/me").status_code == 200
        assert elsewhere.get("/api/v1/me").status_code == 401
    assert log_in(site, "anna").status_code == 401
    assert log_in(site, "anna", OTHER).status_code == 201


@pytest.mark.usefixtures("cheap")
def test_logging_out_everywhere_ends_browsers_and_logins_but_not_pipelines(site: Site) -> None:
    browser = add(site, "anna", "operator")
    own = bearer(log_in(site, "anna"))
    kept = bearer(site.client.post("/api/v1/tokens", json={"name": "anna-ci", "role": "viewer"}, headers=own))
    assert browser.get("/api/v1/me").json()["sessions"] == 1
    answer = site.client.post("/api/v1/me/logout-everywhere", headers=own)
    assert answer.json() == {"sessions": 1, "tokens": 1}
    assert browser.get("/api/v1/me").status_code == 401
    assert site.client.get("/api/v1/me", headers=own).status_code == 401
    assert site.client.get("/api/v1/me", headers=kept).status_code == 200
    browser.close()


@pytest.mark.usefixtures("cheap")
def test_whoever_is_disabled_is_out_at_once(site: Site) -> None:
    browser = add(site, "anna", "operator")
    own = bearer(log_in(site, "anna"))
    admin = site.as_("admin")
    changed = site.client.patch("/api/v1/people/anna", json={"disabled": True}, headers=admin)
    assert changed.json()["disabled_ms"] == site.clock()
    assert browser.get("/api/v1/me").status_code == 401
    assert site.client.get("/api/v1/me", headers=own).status_code == 401
    assert log_in(site, "anna").status_code == 401
    assert site.client.post("/login", data={"token": own["Authorization"].split()[1]}).status_code == 401
    site.client.patch("/api/v1/people/anna", json={"disabled": False}, headers=admin)
    assert log_in(site, "anna").status_code == 201
    browser.close()


# --- roles and tokens --------------------------------------------------------------------------------------------------


@given(st.sampled_from(ROLES), st.sampled_from(ROLES))
def test_what_two_roles_have_in_common_is_what_both_may(first: str, second: str) -> None:
    shared = common(first, second)
    for role in ROLES:
        assert (shared is not None and may(shared, role)) == (may(first, role) and may(second, role))


@pytest.mark.usefixtures("cheap")
def test_a_token_never_does_more_than_its_owner(site: Site) -> None:
    add(site, "anna", "operator").close()
    admin, own = site.as_("admin"), bearer(log_in(site, "anna"))

    def make(name: str, role: str, who: dict[str, str] = own, **more: object) -> httpx.Response:
        return site.client.post("/api/v1/tokens", json={"name": name, "role": role, **more}, headers=who)

    assert make("a1", "admin").json()["code"] == "role"
    assert make("a2", "approver").json()["code"] == "role"
    assert make("a3", "viewer", owner="bert").status_code == 403
    token = make("anna-ci", "operator").json()
    assert token["owner"] == "anna"
    pipeline = {"Authorization": f"Bearer {token['token']}"}
    assert make("a4", "viewer", pipeline).status_code == 403  # a token alone makes no tokens
    assert site.client.post("/api/v1/builds/1/retry", headers=pipeline).status_code == 404
    assert site.client.get("/api/v1/whoami", headers=pipeline).json() == {"name": "anna", "role": "operator"}
    site.client.patch("/api/v1/people/anna", json={"role": "approver"}, headers=admin)
    assert site.client.get("/api/v1/whoami", headers=pipeline).json()["role"] == "viewer"
    assert site.client.post("/api/v1/builds/1/retry", headers=pipeline).status_code == 403
    names = {one["name"] for one in site.client.get("/api/v1/tokens", headers=pipeline).json()["items"]}
    assert "anna-ci" in names
    assert "a-admin" not in names
    assert site.client.delete("/api/v1/tokens/a-admin", headers=pipeline).status_code == 403
    assert site.client.delete("/api/v1/tokens/anna-ci", headers=pipeline).status_code == 204
    assert site.client.get("/api/v1/whoami", headers=pipeline).status_code == 401


@pytest.mark.usefixtures("cheap")
def test_an_action_by_a_token_is_told_under_its_owners_name(site: Site) -> None:
    add(site, "anna", "operator").close()
    own = bearer(log_in(site, "anna"))
    site.client.put("/api/v1/groups/line-a", json={"devices": []}, headers=own)
    entry = site.client.get("/api/v1/audit?limit=1", headers=own).json()["items"][0]
    assert entry["who"] == "anna"
    assert re.fullmatch(r"api 127\.0\.0\.1 token anna\.login\.[0-9a-f]{8}", entry["origin"])


def test_a_token_for_some_models_changes_no_others(site: Site) -> None:
    body = {"name": "digits-ci", "role": "operator", "models": ["digits"]}
    made = bearer(site.client.post("/api/v1/tokens", json=body, headers=site.as_("admin")))
    site.secrets["digits-ci"] = made["Authorization"].split()[1]
    assert site.push("digits", "1.0", role="digits-ci").status_code == 201
    other = site.push("voices", "1.0", role="digits-ci")
    assert (other.status_code, other.json()["code"]) == (403, "other_model")
    assert site.client.get("/api/v1/models", headers=made).status_code == 200
    more = site.client.post(
        "/api/v1/models/voices/versions/1.0/builds", json={"targets": ["onnxruntime-fp32"]}, headers=made
    )
    assert more.json()["code"] == "other_model"
    for method, url in (("PUT", "/api/v1/groups/x"), ("POST", "/api/v1/claim-tokens"), ("POST", "/api/v1/login-codes")):
        answer = site.client.request(method, url, json={}, headers=made)
        assert (answer.status_code, answer.json()["code"]) == (403, "other_model"), url


@pytest.mark.usefixtures("cheap")
def test_names_are_one_persons_or_one_tokens(site: Site, database: Database) -> None:
    admin = site.as_("admin")
    add(site, "anna", "viewer").close()
    for name in ("anna", "ANNA", "a-admin", "A-Viewer"):
        answer = site.client.post("/api/v1/people", json={"name": name, "role": "viewer"}, headers=admin)
        assert answer.status_code == 409, name
    answer = site.client.post("/api/v1/tokens", json={"name": "Anna", "role": "viewer"}, headers=admin)
    assert answer.json()["code"] == "name_taken"
    with database.session() as session, pytest.raises(Conflict):
        directory.add(session, "anna", "viewer", "test", 1)


@pytest.mark.usefixtures("cheap")
def test_nobody_raises_or_shuts_out_themselves(site: Site) -> None:
    add(site, "anna", "admin").close()
    own = bearer(log_in(site, "anna"))
    for change in ({"role": "viewer"}, {"disabled": True}):
        assert site.client.patch("/api/v1/people/anna", json=change, headers=own).json()["code"] == "oneself"
    lesser = bearer(log_in(site, "anna", role="operator"))
    assert site.client.get("/api/v1/people", headers=lesser).status_code == 403
    assert log_in(site, "anna", role="worker").status_code == 201


@pytest.mark.usefixtures("cheap")
def test_people_are_for_administrators_and_no_answer_holds_a_hash(site: Site) -> None:
    add(site, "anna", "viewer", email="anna@factory.example").close()
    for role in ("viewer", "operator", "approver", "worker"):
        for method, url in (
            ("GET", "/people"),
            ("POST", "/people"),
            ("PATCH", "/people/anna"),
            ("GET", "/people/anna"),
        ):
            json = {"name": "x", "role": "viewer"} if method == "POST" else {}
            answer = site.client.request(method, f"/api/v1{url}", json=json, headers=site.as_(role))
            assert answer.status_code == 403, (role, url)
    listed = site.client.get("/api/v1/people", headers=site.as_("admin"))
    assert "scrypt" not in listed.text
    with site.services.database.reading() as session:
        assert (session.scalars(select(Person.password)).one() or "").startswith("scrypt$")
    assert PASSWORD not in site.client.get("/api/v1/audit?limit=1000", headers=site.as_("viewer")).text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a b", "role": "viewer"}, "name"),
        ({"name": "anna", "role": "worker"}, "role"),
        ({"name": "anna", "role": "viewer", "email": "nobody"}, "email"),
        ({"name": "anna", "role": "viewer", "email": "a@b\nBcc: c@d"}, "email"),
        ({"name": "anna", "role": "viewer", "notify": ["campaign.danced"]}, "notify.0"),
    ],
)
def test_a_bad_person_names_the_field(site: Site, body: dict[str, object], field: str) -> None:
    answer = site.client.post("/api/v1/people", json=body, headers=site.as_("admin"))
    assert (answer.status_code, answer.json()["field"]) == (422, field)
