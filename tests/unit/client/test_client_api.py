"""The API's methods against a real socket: what is sent, what comes back, and every way it can go wrong."""

from __future__ import annotations

import base64
import hashlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from covey_client.api import ApiError, BadAnswer, Client, ClientError, Unreachable
from covey_client.transport import Transport
from covey_contract.building import BuildJob, BuildReport, LeaseRequest, Outcome, SourceFile
from covey_contract.wire import encode

if TYPE_CHECKING:
    from tests.unit.client.conftest import Asked, FakeServer

SHA = "a" * 64
JOB = BuildJob(
    id=7,
    lease="lease-1",
    lease_expires_ms=1000,
    model="digits",
    version="1.0",
    target="tflite-int8",
    source=SourceFile(filename="digits.onnx", size=3, sha256=SHA),
)


def test_the_token_is_sent_as_a_bearer(server: FakeServer) -> None:
    server.on("GET /api/v1/whoami", {"name": "ci", "role": "operator"})
    with Client(server.url + "/", "secret") as client:
        assert client.whoami() == {"name": "ci", "role": "operator"}
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def test_a_problem_document_becomes_an_error_with_all_it_says(server: FakeServer) -> None:
    server.refuse("GET /api/v1/models/x", 422, "soak is no duration", code="bad", field="stages[0].soak", line=9)
    with Client(server.url) as client, pytest.raises(ApiError) as error:
        client.model("x")
    assert (error.value.status, error.value.code, error.value.field, error.value.line) == (
        422,
        "bad",
        "stages[0].soak",
        9,
    )
    assert str(error.value) == "line 9: stages[0].soak: soak is no duration"


def test_field_and_line_are_not_said_twice() -> None:
    error = ApiError(422, "No", "line 9: stages[0].soak: no duration", "bad", {"field": "stages[0].soak", "line": 9})
    assert str(error) == "line 9: stages[0].soak: no duration"


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"", b"[1]", b"\xff\xfe"])
def test_an_error_that_is_no_problem_document(server: FakeServer, body: bytes) -> None:
    server.raw("GET /api/v1/whoami", body, status=502)
    with Client(server.url) as client, pytest.raises(ApiError, match="502 Bad Gateway") as error:
        client.whoami()
    assert error.value.code == "http_502"


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[1]", b'"x"', b"\xff"])
def test_something_that_is_no_covey_server(server: FakeServer, body: bytes) -> None:
    server.raw("GET /api/v1/whoami", body)
    with Client(server.url) as client, pytest.raises(BadAnswer, match="is this a Covey server"):
        client.whoami()


def test_a_redirect_is_not_followed(server: FakeServer) -> None:
    server.raw("GET /api/v1/whoami", b"", status=302, Location="/elsewhere")
    with Client(server.url, "secret") as client, pytest.raises(BadAnswer, match="answered 302"):
        client.whoami()
    assert len(server.asked) == 1


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(Unreachable, match="no server answers at"):
        client.whoami()


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.05) as client, pytest.raises(Unreachable, match="does not answer in time"):
            client.whoami()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://[::1", "http://a b:x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ClientError, match="server address"):
        Client(url)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "ünicode", "nul\0"])
def test_a_token_that_is_none_is_not_repeated(token: str) -> None:
    with pytest.raises(ClientError, match="not a token") as error:
        Client("http://127.0.0.1:1", token)
    assert token not in str(error.value)


def test_an_answer_without_end_is_cut_off(server: FakeServer, tmp_path: Path) -> None:
    server.raw(f"GET /api/v1/blobs/{SHA}", b"x" * 5000)
    with Client(server.url) as client, pytest.raises(BadAnswer, match="more than 4999 bytes"):
        client.download_blob(SHA, tmp_path / "file", limit=4999)
    assert list(tmp_path.iterdir()) == []


# --- lists --------------------------------------------------------------------------------------------------------------


def test_lists_are_read_page_by_page(server: FakeServer) -> None:
    server.on(
        "GET /api/v1/devices",
        {"items": [{"id": "a"}, {"id": "b"}], "next": "b"},
        {"items": [{"id": "c"}], "next": None},
    )
    with Client(server.url) as client:
        assert [one["id"] for one in client.devices(online=True, group=None)] == ["a", "b", "c"]
    assert server.asked[0].query == {"online": ["true"], "limit": ["500"]}
    assert server.asked[1].query["after"] == ["b"]


def test_the_audit_log_goes_backwards_and_stops_at_the_limit(server: FakeServer) -> None:
    server.on("GET /api/v1/audit", {"items": [{"id": 9}, {"id": 8}], "next": "8"}, {"items": [{"id": 7}], "next": "7"})
    with Client(server.url) as client:
        assert [one["id"] for one in client.admin.audit(limit=3)] == [9, 8, 7]
    assert server.asked[1].query["before"] == ["8"]


def test_a_cursor_that_does_not_move_ends_the_list(server: FakeServer) -> None:
    server.on("GET /api/v1/groups", {"items": [{"name": "a"}], "next": "a"})
    with Client(server.url) as client:
        assert len(client.groups()) == 2


def test_a_list_that_is_none(server: FakeServer) -> None:
    server.on("GET /api/v1/groups", {"groups": []})
    with Client(server.url) as client, pytest.raises(BadAnswer, match="answered no list"):
        client.groups()


# --- names --------------------------------------------------------------------------------------------------------------


def test_a_name_cannot_lead_elsewhere(server: FakeServer) -> None:
    with Client(server.url) as client:
        with pytest.raises(ApiError):
            client.device("../tokens?x=1#y")
        with pytest.raises(ClientError, match="not a name"):
            client.device("..")
        with pytest.raises(ClientError, match="not a name"):
            client.campaign("")
    assert [asked.path for asked in server.asked] == ["/api/v1/devices/..%2Ftokens%3Fx%3D1%23y"]


# --- models -------------------------------------------------------------------------------------------------------------


def test_a_push_sends_files_and_fields_and_tells_how_far_it_is(server: FakeServer, tmp_path: Path) -> None:
    source, labels = tmp_path / "digits.onnx", tmp_path / "labels.txt"
    source.write_bytes(b"m" * 300_000)
    labels.write_text("zero\none\n")
    server.on("POST /api/v1/models/digits/versions", {"model": "digits", "version": "1.0"}, status=201)
    sent: dict[str, int] = {}
    with Client(server.url) as client:
        client.push_version(
            "digits",
            "1.0",
            source,
            labels=labels,
            budget=0.02,
            targets=["tflite-int8", "openvino-int8"],
            metadata={"owner": "me"},
            progress=sent.__setitem__,
        )
    asked = server.asked[0]
    assert sent == {"source": 300_000, "labels": 9}
    assert "content-length" in asked.headers
    assert b'name="source"; filename="digits.onnx"' in asked.body
    assert b'name="labels"; filename="labels.txt"' in asked.body
    assert asked.body.count(b'name="targets"') == 2
    for field, value in {"version": b"1.0", "budget": b"0.02", "metadata": b'{"owner": "me"}'}.items():
        assert f'name="{field}"\r\n\r\n'.encode() + value in asked.body
    assert b'name="description"' not in asked.body


def test_the_same_version_with_other_content(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"m")
    server.refuse("POST /api/v1/models/digits/versions", 409, "digits 1.0 is there already, with other content")
    with Client(server.url) as client, pytest.raises(ApiError) as error:
        client.push_version("digits", "1.0", tmp_path / "m.onnx")
    assert error.value.status == 409


# --- the worker's side --------------------------------------------------------------------------------------------------


def test_a_lease_is_decoded_by_the_contract(server: FakeServer) -> None:
    server.raw("POST /api/v1/jobs/lease", encode(JOB))
    with Client(server.url) as client:
        assert client.lease(LeaseRequest(worker="w", targets=("tflite-*",))) == JOB
    assert server.asked[0].json == {"worker": "w", "targets": ["tflite-*"]}


def test_no_job(server: FakeServer) -> None:
    server.raw("POST /api/v1/jobs/lease", b"", status=204)
    with Client(server.url) as client:
        assert client.lease(LeaseRequest(worker="w", targets=())) is None


def test_a_job_that_breaks_the_contract(server: FakeServer) -> None:
    server.on("POST /api/v1/jobs/lease", {"id": "seven"})
    with Client(server.url) as client, pytest.raises(BadAnswer, match="breaks the contract: BuildJob"):
        client.lease(LeaseRequest(worker="w", targets=()))


def test_a_file_is_delivered_as_a_stream_of_known_length(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"b" * 600_000)
    server.on(f"PUT /api/v1/jobs/7/files/{SHA}", {"sha256": SHA, "size": 600_000})
    progress: list[int] = []
    with Client(server.url) as client:
        client.upload_file(7, "lease-1", SHA, tmp_path / "model", progress.append)
    asked = server.asked[0]
    assert asked.query == {"lease": ["lease-1"]}
    assert asked.headers["content-length"] == "600000"
    assert asked.body == b"b" * 600_000
    assert progress[-1] == 600_000
    assert len(progress) > 1


def test_finishing_sends_report_and_the_manifests_exact_bytes(server: FakeServer) -> None:
    server.on("POST /api/v1/jobs/7/finish", {"id": 7, "state": "built", "digest": SHA})
    report = BuildReport(target="tflite-int8", outcome=Outcome.BUILT, size=5, notes=("fine",))
    with Client(server.url) as client:
        client.finish(7, "lease-1", report, b"\x00exact")
        client.finish(7, "lease-1", report)
    body = server.asked[0].json
    assert body["report"] == {"target": "tflite-int8", "outcome": "built", "size": 5, "notes": ["fine"]}
    assert base64.b64decode(body["manifest"]) == b"\x00exact"
    assert server.asked[1].json["manifest"] is None


def test_a_blob_arrives_whole(server: FakeServer, tmp_path: Path) -> None:
    data = b"w" * 700_000
    sha256 = hashlib.sha256(data).hexdigest()
    server.raw(f"GET /api/v1/blobs/{sha256}", data)
    with Client(server.url) as client:
        assert client.download_blob(sha256, tmp_path / "file") == len(data)
    assert (tmp_path / "file").read_bytes() == data
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_blob_with_wrong_bytes_never_gets_there(server: FakeServer, tmp_path: Path) -> None:
    server.raw(f"GET /api/v1/blobs/{SHA}", b"not what was asked for")
    (tmp_path / "file").write_bytes(b"old")
    with Client(server.url) as client, pytest.raises(BadAnswer, match="has the SHA-256"):
        client.download_blob(SHA, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


# --- devices, groups, campaigns ------------------------------------------------------------------------------------------


def test_what_the_other_methods_ask(server: FakeServer) -> None:
    def echo(asked: Asked) -> object:
        return {"items": [], "asked": [asked.method, asked.query]}

    expected: list[tuple[str, object]] = []
    with Client(server.url) as client:

        def ask(route: str, body: object, call: object) -> None:
            server.on(route, echo)
            expected.append((route, body))
            assert callable(call)
            call()

        ask("POST /api/v1/claim-tokens", {"device": "a"}, lambda: client.create_claim_token("a"))
        ask("PATCH /api/v1/devices/a", {"labels": {"x": None}}, lambda: client.set_labels("a", {"x": None}))
        ask("POST /api/v1/devices/a/revoke", None, lambda: client.revoke_device("a"))
        ask("POST /api/v1/devices/a/assignments", {"model": "m", "version": "1"}, lambda: client.assign("a", "m", "1"))
        ask(
            "POST /api/v1/devices/a/assignments",
            {"model": "m", "version": "1", "probation_s": 0},
            lambda: client.assign("a", "m", "1", probation_s=0),
        )
        ask("POST /api/v1/devices/a/commands", {"kind": "ping"}, lambda: client.command("a", "ping"))
        ask("GET /api/v1/devices/a/telemetry", None, lambda: client.device_telemetry("a", 5))
        ask("GET /api/v1/devices/a/why", None, lambda: client.why("a", "m"))
        ask("PUT /api/v1/groups/g", {"devices": []}, lambda: client.set_group("g", devices=[]))
        ask("PUT /api/v1/groups/h", {"selector": {"k": "v"}}, lambda: client.set_group("h", selector={"k": "v"}))
        ask("POST /api/v1/campaigns/c/skip-soak", None, lambda: client.campaign_action("c", "skip-soak"))
        ask("POST /api/v1/models/m/versions/1/builds", {"targets": ["t"]}, lambda: client.add_builds("m", "1", ["t"]))
        ask("POST /api/v1/tokens", {"name": "ci", "role": "viewer"}, lambda: client.admin.create_token("ci", "viewer"))
    assert [f"{asked.method} {asked.path}" for asked in server.asked] == [route for route, _ in expected]
    assert [asked.json if asked.body else None for asked in server.asked] == [body for _, body in expected]


@pytest.mark.parametrize(
    ("source", "kind"), [(b"name: a\n", "application/yaml"), (b' {"name": "a"}', "application/json")]
)
def test_a_campaign_file_is_sent_as_it_is(server: FakeServer, source: bytes, kind: str) -> None:
    server.on("POST /api/v1/campaigns", {"name": "a"}, status=201)
    with Client(server.url) as client:
        client.create_campaign(source, start=False)
    assert server.asked[0].body == source
    assert server.asked[0].headers["content-type"] == kind
    assert server.asked[0].query == {"start": ["false"]}


def test_a_client_that_is_dropped_leaves_no_socket_open(server: FakeServer) -> None:
    server.on("GET /api/v1/whoami", {})
    client = Client(server.url)
    client.whoami()
    transport: Transport = client._api  # noqa: SLF001  # what is looked at is whether it closes itself
    finalizer = transport.close
    assert finalizer.alive
    del client, transport
    assert not finalizer.alive
