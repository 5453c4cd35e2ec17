"""The API of devices, groups, enrolment and claim tokens: what it does, and how it says no."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import queue
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import select, text

from covey_agent.bundle import Bundle
from covey_agent.core.acceptance import authenticate, open_manifest, release_path
from covey_agent.tuf.folder import MetadataFolder
from covey_agent.tuf.source import BundleSource
from covey_agent.tuf.updater import Updater
from covey_agent.web_blocks import WebBlocks
from covey_contract.blocks import Block
from covey_contract.bundle import blob_name, order_name
from covey_contract.enrolment import EnrolResponse, parse_claim_token
from covey_contract.lifecycle import State
from covey_contract.manifest import Manifest
from covey_contract.messages import BlockRequest, ModelStatus, Offer, Order
from covey_contract.wire import decode, encode
from covey_hil.testing.serving import served
from covey_server.app import build_services, create_app, running
from covey_server.db.tables import Build
from covey_server.releases.catch_up import release_of
from covey_server.settings import Settings

BUILD = "0" * 64


class Api:
    """The application on a port, with its fleet service running, and a `World`'s helpers on the same parts."""

    def __init__(self, folder: Path, make_world: Any, **more: Any) -> None:
        self.services = build_services(Settings(data=folder / "data", fleet_tick_s=0.2, enrol_per_minute=30, **more))
        self.world = make_world()
        self.world.fleet = self.services.fleet
        self._token = (folder / "data" / "admin-token").read_text().strip()
        self.client = httpx.Client(timeout=60)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Api]:
        headers = {"Authorization": f"Bearer {self._token}"}
        with (
            running(self.services),
            served(create_app(self.services)) as url,
            httpx.Client(base_url=url, headers=headers, timeout=30) as self.client,
        ):
            yield self

    def call(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        answer = self.client.request(method, f"/api/v1{path}", **more)
        assert answer.status_code == status, answer.text
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
        return answer.json() if answer.content and "json" in answer.headers["content-type"] else answer.text


@pytest.fixture
def api(tmp_path: Path, make_world: Any) -> Iterator[Api]:
    made = Api(tmp_path, make_world)
    with made.serving():
        yield made


def _enrol(api: Api, name: str, token: str | None = None, **facts: Any) -> Any:
    token = token or api.call("POST", "/claim-tokens", 201, json={"device": name})["token"]
    device = api.world.new_device(name, **facts)
    request = device.request(parse_claim_token(token).secret)
    answer = api.client.post("/api/v1/enrol", content=encode(request), headers={"Authorization": ""})
    assert answer.status_code == 201, answer.text
    device.adopt(decode(EnrolResponse, answer.content))
    return device


def test_the_life_of_a_device(api: Api) -> None:
    api.call("PUT", "/groups/canary", 201, json={"devices": [], "description": "first"})
    body = {"groups": ["canary", "all"], "labels": {"line": "a"}}
    token = api.call("POST", "/claim-tokens", 201, json=body)["token"]
    device = _enrol(api, "any", token, board="Raspberry Pi 5 Model B Rev 1.0", architecture="aarch64")
    name = device.identity.device
    assert name.startswith("raspberry-pi-5-")
    device.name = name
    device.connect()
    api.world.until(lambda: api.call("GET", f"/devices/{name}")["online"])

    build = api.world.build()
    order = {"model": "digits", "version": "1.0", "target": "onnxruntime-fp32", "probation_s": 2}
    made = api.call("POST", f"/devices/{name}/assignments", 201, json=order)
    assignment, manifest = device.accept()
    assert assignment.id == made["assignment"]
    assert assignment.probation.seconds == 2
    device.fetch(assignment.build, manifest)
    device.report(assignment, State.ACTIVE)
    device.measure(build[2])
    api.world.until(lambda: not device.unacknowledged)

    shown = api.call("GET", f"/devices/{name}")
    assert shown["groups"] == ["all", "canary"]
    assert shown["labels"] == {"line": "a"}
    assert shown["profile"] == "raspberry-pi-5"
    assert shown["profile_reason"]
    assert shown["simulated"] is True
    (model,) = shown["models"]
    assert model["active"]["version"] == "1.0"
    assert model["active"]["target"] == "onnxruntime-fp32"
    assert (model["desired"]["state"], model["desired"]["kind"]) == ("active", "manual")
    assert model["desired"]["why"]["by"] == "admin"
    assert [one["state"] for one in api.call("GET", f"/devices/{name}/reports")["items"]] == ["active"]
    (window,) = api.call("GET", f"/devices/{name}/telemetry?minutes=5")["items"]
    assert (window["ok"], window["build"]) == (10, build[2])
    assert api.call("POST", f"/devices/{name}/commands", json={"kind": "ping"})["text"] == "pong"

    patched = api.call("PATCH", f"/devices/{name}", json={"labels": {"line": None, "site": "x"}})
    assert patched["labels"] == {"site": "x"}
    assert api.call("POST", f"/devices/{name}/revoke")["revoked_ms"]
    assert api.call("POST", f"/devices/{name}/revoke")["revoked_ms"]
    api.call("POST", f"/devices/{name}/commands", 409, json={"kind": "ping"})
    api.call("POST", f"/devices/{name}/assignments", 409, json=order)
    assert api.call("GET", "/groups/all")["devices"] == []
    assert api.call("GET", "/audit/verify")
    actions = [entry["action"] for entry in api.call("GET", "/audit?limit=50")["items"]]
    assert {"claim_token.create", "device.enrol", "device.assign", "device.labels", "device.revoke"} <= set(actions)
    device.disconnect()


def test_a_bundle_is_what_its_device_accepts(api: Api, tmp_path: Path) -> None:
    """The orders that are not done, metadata by which the device's own client finds the build, and every file of it."""
    api.call("POST", "/bundles", 404, json={"devices": ["press-7"]})
    device = _enrol(api, "press-7")
    api.call("POST", "/bundles", 409, json={"devices": ["press-7"]})
    api.call("POST", "/bundles", 422, json={"devices": []})
    build = api.world.build()
    row = api.world.row(Build, build[1])
    manifest = decode(Manifest, row.manifest)
    releases = api.services.releases
    assert releases is not None
    releases.release([release_of(manifest, row.manifest)])
    order = {"model": "digits", "version": "1.0", "target": "onnxruntime-fp32"}
    made = api.call("POST", "/devices/press-7/assignments", 201, json=order)
    answer = api.client.post("/api/v1/bundles", json={"devices": ["press-7"], "model": "digits"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    path = tmp_path / "press-7.bundle"
    path.write_bytes(answer.content)

    trust = device.identity.trust
    with Bundle(path) as bundle:
        told = decode(Order, bundle.order(order_name("press-7", "digits")))
        now_ms = api.services.clock()
        assignment = authenticate(told.assignment, trust=trust, device="press-7", counter=0, now_ms=now_ms)
        assert (assignment.id, assignment.build) == (made["assignment"], build[2])
        assert open_manifest(assignment, told.manifest, trust)[0] == manifest
        root = device.identity.root
        updater = Updater(MetadataFolder(tmp_path), BundleSource(bundle), releases.now(), embedded=root)
        updater.refresh()
        assert updater.find(release_path(manifest)).length == len(row.manifest)
        for entry in manifest.wire_files():
            content = bundle.read(blob_name(entry.sha256), 0, entry.size)
            assert hashlib.sha256(content).hexdigest() == entry.sha256

    # The device installs it and comes back: the server believes it, and has nothing to send.
    device.models = (
        ModelStatus(
            model="digits",
            active=build[2],
            assignment=assignment.id,
            counter=assignment.counter,
            state=State.ACTIVE,
        ),
    )
    device.counter = assignment.counter
    device.connect()
    device.report(assignment, State.ACTIVE)
    api.world.until(lambda: api.call("GET", "/devices/press-7")["models"][0].get("state") == "active")
    assert device.inbox["assignment"].empty()
    api.call("POST", "/bundles", 409, json={"devices": ["press-7"]})
    actions = [entry["action"] for entry in api.call("GET", "/audit?limit=50")["items"]]
    assert "device.bundle" in actions
    device.disconnect()


def test_why_comes_from_the_choice(api: Api) -> None:
    _enrol(api, "press-7")
    api.world.build()
    assert api.call("GET", "/devices/press-7/why?model=digits&version=1.0")


def test_lists_filter_and_page(api: Api) -> None:
    for name, line in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        token = api.call("POST", "/claim-tokens", 201, json={"device": name, "labels": {"line": line}})["token"]
        _enrol(api, name, token, memory_mb=100 * len(name))
    api.call("PUT", "/groups/line-a", 201, json={"selector": {"labels.line": "a"}})
    api.call("PUT", "/groups/some", 201, json={"devices": ["b1", "a1"]})
    api.call("PUT", "/groups/some", 200, json={"devices": ["b1"]})

    def ids(query: str) -> list[str]:
        return [item["id"] for item in api.call("GET", f"/devices?{query}")["items"]]

    assert ids("") == ["a1", "a2", "b1"]
    assert ids("group=line-a") == ["a1", "a2"]
    assert ids("group=some") == ["b1"]
    assert ids("q=2") == ["a2"]
    assert ids("q=%25") == []
    assert ids("online=true") == []
    assert ids("model=digits") == []
    page = api.call("GET", "/devices?limit=2")
    assert page["next"] == "a2"
    assert [item["id"] for item in api.call("GET", "/devices?limit=2&after=a2")["items"]] == ["b1"]
    assert [group["name"] for group in api.call("GET", "/groups")["items"]] == ["all", "line-a", "some"]
    assert api.call("GET", "/groups/line-a")["devices"] == ["a1", "a2"]
    assert api.call("GET", "/groups/all")["count"] == 3
    api.call("DELETE", "/groups/some", 204)
    api.call("GET", "/groups/some", 404)


SELECTOR = "/groups/x"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/devices/nobody", None, 404, "not_found"),
        ("GET", "/devices?limit=0", None, 422, "invalid"),
        ("GET", "/devices?group=nobody", None, 404, "not_found"),
        ("GET", "/devices/nobody/reports", None, 404, "not_found"),
        ("GET", "/devices/nobody/telemetry", None, 404, "not_found"),
        ("GET", "/devices/nobody/telemetry?minutes=0", None, 422, "invalid"),
        ("GET", "/devices/nobody/why?model=x", None, 404, "not_found"),
        ("POST", "/devices/nobody/revoke", None, 404, "not_found"),
        ("PATCH", "/devices/press-7", {}, 422, "invalid"),
        ("PATCH", "/devices/press-7", {"labels": {"a b": "x"}}, 422, "invalid"),
        ("PATCH", "/devices/press-7", {"labels": {"a": "x" * 300}}, 422, "invalid"),
        ("PATCH", "/devices/press-7", {"labels": {"a": "x"}, "colour": 1}, 422, "invalid"),
        ("POST", "/devices/press-7/commands", {"kind": "reboot"}, 422, "invalid"),
        ("POST", "/devices/press-7/commands", {"kind": "ping"}, 409, "device_offline"),
        ("POST", "/devices/press-7/assignments", {"model": "digits"}, 422, "invalid"),
        (
            "POST",
            "/devices/press-7/assignments",
            {"model": "digits", "version": "1.0", "probation_s": 3601},
            422,
            "invalid",
        ),
        ("POST", "/devices/press-7/assignments", {"model": "digits", "version": "9"}, 404, "not_found"),
        (
            "POST",
            "/devices/press-7/assignments",
            {"model": "digits", "version": "1.0", "target": "x"},
            404,
            "not_found",
        ),
        ("POST", "/claim-tokens", {"device": "covey-server"}, 422, "invalid"),
        ("POST", "/claim-tokens", {"device": "a b"}, 422, "invalid"),
        ("POST", "/claim-tokens", {"groups": ["nobody"]}, 422, "invalid"),
        ("POST", "/claim-tokens", {"groups": ["sel"]}, 422, "invalid"),
        ("POST", "/claim-tokens", {"ttl_s": 0}, 422, "invalid"),
        ("POST", "/claim-tokens", {"labels": {"a": 1}}, 422, "invalid"),
        ("PUT", SELECTOR, {}, 422, "invalid"),
        ("PUT", SELECTOR, {"devices": [], "selector": {"profile": "x"}}, 422, "invalid"),
        ("PUT", SELECTOR, {"devices": ["nobody"]}, 422, "invalid"),
        ("PUT", SELECTOR, {"selector": {}}, 422, "invalid"),
        ("PUT", SELECTOR, {"selector": {"id": "x"}}, 422, "invalid"),
        ("PUT", SELECTOR, {"selector": {"labels.a'b": "x"}}, 422, "invalid"),
        ("PUT", SELECTOR, {"selector": {"labels.a": None}}, 422, "invalid"),
        ("PUT", SELECTOR, {"selector": {"labels.a": []}}, 422, "invalid"),
        ("PUT", "/groups/all", {"devices": []}, 409, "conflict"),
        ("PUT", "/groups/a%20b", {"devices": []}, 422, "invalid"),
        ("DELETE", "/groups/all", None, 409, "conflict"),
        ("DELETE", "/groups/nobody", None, 404, "not_found"),
    ],
)
def test_bad_input(shared: Api, method: str, path: str, body: Any, status: int, code: str) -> None:
    problem = shared.call(method, path, status, json=body)
    assert problem["code"] == code
    assert problem["detail"]
    assert "Traceback" not in problem["detail"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, world_class: Any) -> Iterator[Api]:
    """One application for the whole table of bad input."""
    folder = tmp_path_factory.mktemp("api")
    worlds = []

    def make() -> Any:
        worlds.append(world_class(folder / "data"))
        return worlds[-1]

    made = Api(folder, make)
    with made.serving():
        _enrol(made, "press-7")
        made.world.build()
        made.call("PUT", "/groups/sel", 201, json={"selector": {"profile": "x"}})
        yield made
    worlds[0].database.close()


def test_enrolment_says_no(api: Api) -> None:
    device = api.world.new_device("press-7")

    def enrol(content: bytes, status: int) -> Any:
        return api.call("POST", "/enrol", status, content=content, headers={"Authorization": ""})

    good = device.request("x" * 32)
    assert enrol(encode(good), 403)["code"] == "bad_claim_token"
    assert enrol(b"", 422)["code"] == "contract"
    assert enrol(b"{", 422)["code"] == "contract"
    assert enrol(b"\xff" * 100, 422)["code"] == "contract"
    assert enrol(b" " * 70_000, 413)["code"] == "too_large"

    token = parse_claim_token(api.call("POST", "/claim-tokens", 201, json={"device": "press-7"})["token"]).secret
    broken = msgspec.structs.replace(good, secret=token, csr_pem="-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n")
    assert enrol(encode(broken), 422)["field"] == "csr_pem"
    assert enrol(encode(device.request(token, "saw-1")), 409)["code"] == "wrong_device"
    assert enrol(encode(device.request(token)), 201)["device"] == "press-7"  # the token was not spent by the failures
    other = api.world.new_device("saw-1")
    assert enrol(encode(other.request(token)), 403)["code"] == "bad_claim_token"
    taken = parse_claim_token(api.call("POST", "/claim-tokens", 201, json={})["token"]).secret
    assert enrol(encode(device.request(taken, "press-7")), 409)["code"] == "device_exists"
    for _ in range(40):
        answer = api.client.post("/api/v1/enrol", content=encode(good))
        if answer.status_code == 429:
            break
    assert answer.json()["code"] == "too_many_requests"
    assert "BEGIN CERTIFICATE" in api.call("GET", "/ca")


def test_two_devices_one_token(api: Api) -> None:
    token = api.call("POST", "/claim-tokens", 201, json={})["token"]
    first, second = (api.world.new_device(name).request(parse_claim_token(token).secret) for name in ("a", "b"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda r: api.client.post("/api/v1/enrol", content=encode(r)), (first, second)))
    assert sorted(answer.status_code for answer in answers) == [201, 403]
    with api.services.database.reading() as session:
        assert session.execute(text("select count(*) from devices")).scalar() == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/devices"),
        ("GET", "/groups"),
        ("POST", "/claim-tokens"),
        ("POST", "/devices/press-7/revoke"),
        ("PUT", "/groups/x"),
    ],
)
def test_needs_a_login(shared: Api, method: str, path: str) -> None:
    shared.call(method, path, 401, headers={"Authorization": ""}, json={})


def test_a_ticket_opens_the_files_of_its_build_in_ranges(api: Any) -> None:
    build = api.world.build(size=200_000)
    other = api.world.build("openvino-int8")
    tickets = api.services.fleet.tickets
    with api.world.database.reading() as session:
        manifests = {
            digest: decode(Manifest, session.scalar(select(Build.manifest).where(Build.digest == digest)))
            for digest in (build[2], other[2])
        }
    entry = manifests[build[2]].files[0]
    ticket = {"Authorization": f"Bearer {tickets.issue(build[2])}"}
    path = f"/api/v1/delivery/{entry.sha256}"
    answer = api.client.get(path, headers={**ticket, "Range": "bytes=65536-131071"})
    assert answer.status_code == 206, answer.text
    assert answer.headers["content-range"] == "bytes 65536-131071/200000"
    assert answer.headers["etag"] == f'"{entry.sha256}"'
    whole = api.client.get(path, headers=ticket)
    assert hashlib.sha256(whole.content).hexdigest() == entry.sha256
    assert whole.content[65536:131072] == answer.content
    stale = api.client.get(path, headers={**ticket, "Range": "bytes=0-9", "If-Range": '"another"'})
    assert stale.status_code == 200
    assert api.client.get(path, headers={**ticket, "Range": "bytes=900000-"}).status_code == 416
    api.call("GET", f"/delivery/{manifests[other[2]].files[0].sha256}", 404, headers=ticket)
    api.call("GET", f"/delivery/{'..%2f' * 3}", 404, headers=ticket)
    api.call("GET", f"/delivery/{entry.sha256}", 401, headers={"Authorization": "Bearer nothing"})
    api.call("GET", f"/delivery/{entry.sha256}", 401)  # an operator's token is no ticket


def test_an_agents_web_client_fetches_from_the_real_server(api: Any) -> None:
    build = api.world.build(size=300_000)
    with api.world.database.reading() as session:
        manifest = decode(Manifest, session.scalar(select(Build.manifest).where(Build.digest == build[2])))
    arrived: queue.Queue[Block] = queue.Queue()

    def take(block: Block) -> bool:
        arrived.put(block)
        return True

    web = WebBlocks(str(api.client.base_url), ssl.create_default_context, take)
    web.start()
    try:
        offer = Offer(url=api.services.settings.delivery_url, token=api.services.fleet.tickets.issue(build[2]))
        entry = manifest.files[0]
        request = BlockRequest(build=build[2], file=1, base=0, bitmap=0b11111)
        assert web.ask(request, entry, manifest.block_size, offer)
        data = b"".join(arrived.get(timeout=20).data for _ in range(5))
    finally:
        web.stop()
    assert hashlib.sha256(data).hexdigest() == entry.sha256
