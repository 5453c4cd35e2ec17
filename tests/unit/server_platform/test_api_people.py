"""Tokens, roles, sessions, the audit log, and what every answer carries."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text

from covey_server import routes
from covey_server.api import security
from covey_server.db.tables import ApiToken, ConsoleSession
from covey_server.errors import ServerError
from covey_server.people import sessions

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

# What each role may: GET models, GET people, POST jobs/lease, POST builds/1/retry (there is none: 404 where allowed).
MAY = {
    "viewer": (200, 403, 403, 403),
    "operator": (200, 403, 403, 404),
    "approver": (200, 403, 403, 403),
    "admin": (200, 200, 204, 404),
    "worker": (403, 403, 204, 403),
}


@pytest.mark.parametrize("role", MAY)
def test_roles(site: Site, role: str) -> None:
    headers = site.as_(role)
    client = site.client
    answers = (
        client.get("/api/v1/models", headers=headers),
        client.get("/api/v1/people", headers=headers),
        client.post("/api/v1/jobs/lease", headers=headers, json={"worker": "w", "targets": ["*"]}),
        client.post("/api/v1/builds/1/retry", headers=headers),
    )
    assert tuple(answer.status_code for answer in answers) == MAY[role]
    assert client.get("/api/v1/whoami", headers=headers).json() == {"name": f"a-{role}", "role": role}


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer covey_wrong", "Basic YTpi", "Bearer " + "x" * 5000, "Bearer a b"]
)
def test_without_a_good_token_nobody_is_known(site: Site, value: str) -> None:
    headers = {"Authorization": value} if value else {}
    for url in ("/api/v1/models", "/api/v1/whoami", "/api/v1/audit", "/api/v1/blobs/" + "0" * 64):
        answer = site.client.get(url, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["code"] == "unauthorized"


def test_a_token_lives_until_it_ends_or_is_revoked(site: Site) -> None:
    admin, client = site.as_("admin"), site.client
    made = client.post("/api/v1/tokens", json={"name": "ci", "role": "operator", "ttl_s": 60}, headers=admin)
    assert made.status_code == 201
    own = {"Authorization": f"Bearer {made.json()['token']}"}
    assert client.get("/api/v1/models", headers=own).status_code == 200
    again = client.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}, headers=admin)
    assert again.status_code == 409
    site.clock.pass_s(61)
    assert client.get("/api/v1/models", headers=own).status_code == 401
    made = client.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}, headers=admin)
    own = {"Authorization": f"Bearer {made.json()['token']}"}
    assert client.get("/api/v1/whoami", headers=own).json()["role"] == "viewer"
    assert client.delete("/api/v1/tokens/ci", headers=admin).status_code == 204
    assert client.delete("/api/v1/tokens/ci", headers=admin).status_code == 204
    assert client.get("/api/v1/models", headers=own).status_code == 401
    assert client.delete("/api/v1/tokens/nobody", headers=admin).status_code == 404
    listed = client.get("/api/v1/tokens", headers=admin)
    assert made.json()["token"] not in listed.text
    assert [one["name"] for one in listed.json()["items"]] == [
        "a-admin",
        "a-approver",
        "a-operator",
        "a-viewer",
        "a-worker",
        "ci",
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a b", "role": "viewer"}, "name"),
        ({"name": "x" * 65, "role": "viewer"}, "name"),
        ({"name": "x", "role": "king"}, "role"),
        ({"name": "x", "role": "viewer", "ttl_s": 1}, "ttl_s"),
    ],
)
def test_a_bad_token_request_names_the_field(site: Site, body: dict[str, object], field: str) -> None:
    answer = site.client.post("/api/v1/tokens", json=body, headers=site.as_("admin"))
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_only_hashes_are_kept(site: Site) -> None:
    with site.services.database.reading() as session:
        rows = [list(map(str, row)) for row in session.execute(text("SELECT * FROM api_tokens"))]
    assert len(rows) == len(site.secrets)
    assert not any(secret in cell for secret in site.secrets.values() for row in rows for cell in row)


# --- the console's sessions ---------------------------------------------------------------------------------------


def _session(site: Site, role: str) -> tuple[dict[str, str], str]:
    """The cookie and the CSRF token of a new session of this role."""
    code = site.client.post("/api/v1/login-codes", headers=site.as_(role)).json()["code"]
    with site.services.database.session() as session:
        secret = sessions.exchange_login_code(session, code, site.clock(), 3600)
    assert secret is not None
    with site.services.database.reading() as session:
        held = session.get_one(ConsoleSession, sessions.secret_hash(secret))
    return {"Cookie": f"{security.SESSION_COOKIE}={secret}"}, held.csrf


def test_a_login_code_works_once_and_not_for_long(site: Site) -> None:
    codes = [site.client.post("/api/v1/login-codes", headers=site.as_("viewer")).json()["code"] for _ in range(2)]
    with site.services.database.session() as session:
        assert sessions.exchange_login_code(session, "nonsense", site.clock(), 60) is None
        assert sessions.exchange_login_code(session, codes[0], site.clock(), 60) is not None
    with site.services.database.session() as session:
        assert sessions.exchange_login_code(session, codes[0], site.clock(), 60) is None
        site.clock.pass_s(301)
        assert sessions.exchange_login_code(session, codes[1], site.clock(), 60) is None


def test_a_cookie_reads_but_changes_only_with_its_csrf_token(site: Site) -> None:
    cookie, csrf = _session(site, "operator")
    client = site.client
    assert client.get("/api/v1/models", headers=cookie).status_code == 200
    retry = "/api/v1/builds/1/retry"
    for wrong in (b"", b"wrong", "ä".encode()):
        headers = {
            **{name.encode(): value.encode() for name, value in cookie.items()},
            security.CSRF_HEADER.encode(): wrong,
        }
        answer = client.post(retry, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
    assert client.post(retry, headers=cookie | {security.CSRF_HEADER: csrf}).status_code == 404
    assert client.post(retry, headers=cookie, data={security.CSRF_FIELD: csrf}).status_code == 404
    assert client.post(retry, headers=cookie, data={security.CSRF_FIELD: "wrong"}).status_code == 403


def test_a_push_by_form_carries_the_csrf_token_in_a_field(site: Site) -> None:
    cookie, csrf = _session(site, "operator")
    files = {"source": ("m.onnx", b"graph")}
    url = "/api/v1/models/digits/versions"
    data = {"version": "1", "targets": "onnxruntime-fp32"}
    assert site.client.post(url, data=data, files=files, headers=cookie).status_code == 403
    answer = site.client.post(url, data=data | {security.CSRF_FIELD: csrf}, files=files, headers=cookie)
    assert answer.status_code == 201, answer.text


def test_a_session_ends_with_its_time_and_with_its_token(site: Site) -> None:
    cookie, _ = _session(site, "viewer")
    assert site.client.get("/api/v1/models", headers=cookie).status_code == 200
    site.clock.pass_s(3601)
    assert site.client.get("/api/v1/models", headers=cookie).status_code == 401
    cookie, _ = _session(site, "viewer")
    assert site.client.delete("/api/v1/tokens/a-viewer", headers=site.as_("admin")).status_code == 204
    assert site.client.get("/api/v1/models", headers=cookie).status_code == 401


# --- what every answer carries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/healthz", "/api/v1/models", "/no/such/page"])
def test_every_answer_has_the_security_headers(site: Site, url: str) -> None:
    headers = site.client.get(url).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])
    assert "server" not in headers


BAD_REQUESTS = [
    ("GET", "/no/such/page", b"", 404, "not_found"),
    ("DELETE", "/api/v1/models", b"", 405, "method_not_allowed"),
    ("POST", "/api/v1/tokens", b"{", 422, "invalid"),
    ("POST", "/api/v1/tokens", b"\xff\xfe", 422, "invalid"),
    ("POST", "/api/v1/tokens", b"[" * 60_000, 400, "bad_request"),
    ("POST", "/api/v1/tokens", b"x" * 70_000, 413, "too_large"),
    ("GET", "/api/v1/models?limit=0", b"", 422, "invalid"),
    ("GET", "/api/v1/builds?state=nice", b"", 422, "invalid"),
    ("GET", "/api/v1/builds/x", b"", 422, "invalid"),
    ("GET", "/api/v1/builds/99999999999999999999999", b"", 422, "invalid"),
    ("GET", "/api/v1/models/" + "x" * 3000, b"", 404, "not_found"),
    ("GET", "/api/v1/models/a/versions/%00", b"", 404, "not_found"),
]


@pytest.mark.parametrize(("method", "url", "body", "status", "code"), BAD_REQUESTS)
def test_a_bad_request_is_a_problem(site: Site, method: str, url: str, body: bytes, status: int, code: str) -> None:
    headers = site.as_("admin") | {"Content-Type": "application/json"}
    answer = site.client.request(method, url, content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code"} <= answer.json().keys()


def test_a_body_of_unannounced_length_is_cut_off(site: Site) -> None:
    def chunks() -> object:
        for _ in range(20):
            yield b"x" * 10_000

    answer = site.client.post("/api/v1/tokens", content=chunks(), headers=site.as_("admin"))  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_an_unexpected_error_tells_the_log_and_not_the_caller(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.services.database.session() as session:
        session.execute(text("ALTER TABLE models RENAME COLUMN description TO words"))
    with caplog.at_level(logging.ERROR):
        answer = site.client.get("/api/v1/models", headers=site.as_("viewer"))
    assert answer.status_code in (500, 503)
    assert "Traceback" not in answer.text
    assert "description" not in answer.text
    assert answer.json()["request_id"] in caplog.text


def test_secrets_and_queries_are_never_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="covey_server"):
        site.client.get("/api/v1/models?limit=3&after=abc", headers=site.as_("viewer"))
        site.client.post("/api/v1/login-codes", headers=site.as_("viewer"))
    assert "GET /api/v1/models -> 200" in caplog.text
    assert "after=abc" not in caplog.text
    assert not any(secret in caplog.text for secret in site.secrets.values())


def test_readiness_is_more_than_liveness(site: Site) -> None:
    assert site.client.get("/readyz").json() == {"status": "ok"}
    shutil.rmtree(site.services.settings.data)
    answer = site.client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "files" in answer.json()["failing"]
    assert site.client.get("/healthz").status_code == 200


def test_the_audit_log_is_paged_and_checked(site: Site) -> None:
    for version in ("1", "2", "3"):
        site.push(version=version)
    viewer = site.as_("viewer")
    first = site.client.get("/api/v1/audit?limit=2", headers=viewer).json()
    rest = site.client.get(f"/api/v1/audit?limit=2&before={first['next']}", headers=viewer).json()
    assert [one["object"] for one in first["items"] + rest["items"]] == ["digits 3", "digits 2", "digits 1"]
    assert site.client.get("/api/v1/audit/verify", headers=viewer).json() == {
        "whole": True,
        "entries": 3,
        "first_bad": None,
        "kind": None,
        "head": first["items"][0]["hash"],
    }
    with site.services.database.session() as session:
        session.execute(text("DROP TRIGGER audit_no_update"))
        session.execute(text("UPDATE audit SET who = 'mallory' WHERE id = 2"))
    assert site.client.get("/api/v1/audit/verify", headers=viewer).json()["first_bad"] == 2


def test_last_use_is_noted_but_not_every_time(site: Site) -> None:
    def last_used() -> int | None:
        with site.services.database.reading() as session:
            return session.scalar(select(ApiToken.last_used_ms).where(ApiToken.name == "a-viewer"))

    started = site.clock()
    for _ in range(3):
        site.client.get("/api/v1/models", headers=site.as_("viewer"))
        site.clock.pass_s(25)
    assert last_used() == started
    site.client.get("/api/v1/models", headers=site.as_("viewer"))
    assert last_used() == site.clock()


# --- the OpenAPI document -------------------------------------------------------------------------------------------


def test_the_document_tells_people_what_they_need() -> None:
    document = routes.application().openapi()
    tags = {tag["name"] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            assert set(operation.get("tags", [])) <= tags, where
            assert len(operation.get("tags", [])) == 1, where
            errors = {int(status): one for status, one in operation["responses"].items() if int(status) >= 400}
            for response in errors.values():
                assert list(response["content"]) == ["application/problem+json"], where
            if operation.get("security"):
                assert {401, 403} <= errors.keys(), where
    assert "HTTPValidationError" not in json.dumps(document["paths"])


def test_every_kind_of_error_has_its_own_code() -> None:
    kinds = ServerError.__subclasses__()
    assert len({kind.code for kind in kinds}) == len({kind.status for kind in kinds}) == len(kinds)


def test_the_serving_process_loads_no_toolchain() -> None:
    code = "import sys, covey_server.serving; print([m for m in ('numpy', 'onnx', 'openvino', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
