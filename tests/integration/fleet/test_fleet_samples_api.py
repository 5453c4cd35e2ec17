"""The API of samples over a real broker: who may, what it says, the archive, and what the audit log keeps of it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import update

from covey_agent.samples import Samples
from covey_contract.envelope import decode_envelope
from covey_contract.messages import COMMAND_TYPE, Captured, Command, CommandKind, Reply, Resources, Telemetry
from covey_contract.signing import open_envelope
from covey_contract.topics import Up
from covey_hil.testing.made_samples import keep
from covey_server.db.tables import Version
from tests.integration.fleet.conftest import Device, FileReader
from tests.integration.fleet.test_fleet_api import Api, _enrol

if TYPE_CHECKING:
    from collections.abc import Callable


BOTH = pytest.mark.parametrize("in_database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def api(tmp_path: Path, make_world: Any, in_database: dict[str, str]) -> Iterator[Api]:
    made = Api(tmp_path, make_world, **in_database)
    with made.serving():
        yield made


def _capturing(api: Api, name: str, *, may_leave: bool = True) -> tuple[Device, Path]:
    """A device that keeps samples and answers for them as the agent does; and where it keeps them."""
    device: Device = _enrol(api, name)
    samples = Samples(device.folder / "capture", kept=True, may_leave=may_leave)

    def answer(payload: bytes) -> None:
        assert device.identity is not None
        command = open_envelope(Command, decode_envelope(payload), COMMAND_TYPE, device.identity.trust.director)
        reply = Reply(id=command.id, time_ms=1)
        if command.kind is CommandKind.SAMPLES:
            reply = samples.answer(reply, command.samples)
        device.publish(Up.REPLY, reply)

    device._answer = answer  # type: ignore[method-assign]
    device.connect()
    capture = Captured(share=1.0, limit_mb=200.0, samples=1, may_leave=may_leave)
    seq = next(device.seq)
    told = Telemetry(seq=seq, boot_id=device.boot_id, start_ms=1, end_ms=2, resources=Resources(capture=capture))
    device.unacknowledged[seq] = (Up.TELEMETRY, told)
    device.publish(Up.TELEMETRY, told)
    api.world.until(device.settled)
    return device, samples.folder


@pytest.fixture
def headers(api: Api) -> Callable[..., dict[str, str]]:
    def make(role: str, models: list[str] | None = None) -> dict[str, str]:
        body: dict[str, Any] = {"name": f"{role}-{len(models or ())}", "role": role}
        token = api.call("POST", "/tokens", 201, json=body | ({"models": models} if models else {}))["token"]
        return {"Authorization": f"Bearer {token}"}

    return make


def _fetched(api: Api, **body: Any) -> Any:
    made = api.call("POST", "/sample-fetches", 202, json=body)

    def ended() -> Any:
        found = [api.call("GET", f"/sample-fetches/{one['id']}") for one in made["items"]]
        return found if all(one["ended_ms"] for one in found) else None

    return api.world.until(ended), made["skipped"]


def _archive(api: Api, query: str, **more: Any) -> zipfile.ZipFile:
    answer = api.client.get(f"/api/v1/samples/archive?{query}", **more)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    return zipfile.ZipFile(io.BytesIO(answer.content))


@BOTH
def test_samples_are_fetched_listed_downloaded_and_deleted(api: Api) -> None:
    _device, folder = _capturing(api, "press-7")
    api.world.build()
    labels, size = api.services.blobs.put(FileReader(b"zero\none\n"), 1000)
    with api.services.database.session() as session:
        from covey_server.registry.versions import note_blob

        note_blob(session, labels, size, 1)
        session.flush()
        session.execute(update(Version).values(labels_blob=labels))
    paths = [keep(folder, number, count=30_000) for number in (1, 2, 3)]
    assert api.call("GET", "/devices/press-7")["capture"]["may_leave"]
    (fetch,), skipped = _fetched(api, device="press-7", model="digits", limit=2)
    assert (fetch["state"], fetch["found"], fetch["fetched"], skipped) == ("done", 2, 2, {})
    assert _fetched(api, device="press-7")[0][0]["fetched"] == 1
    assert _fetched(api, device="press-7")[0][0]["found"] == 0
    assert len(api.call("GET", "/sample-fetches?device=press-7")["items"]) == 3
    listed = api.call("GET", "/samples?device=press-7&model=digits&limit=2")
    rest = api.call("GET", f"/samples?device=press-7&model=digits&after={listed['next']}")
    assert {one["file"] for one in (*listed["items"], *rest["items"])} == {
        f"press-7/digits/{path.name}" for path in paths
    }
    with _archive(api, "device=press-7") as archive:
        lines = [json.loads(line) for line in archive.read("index.jsonl").splitlines()]
        assert [line["file"] for line in lines] == [f"press-7/digits/{path.name}" for path in reversed(paths)]
        assert archive.read("_classes/digits-1.0.txt") == b"zero\none\n"
        assert (lines[0]["classes"], lines[0]["version"], lines[0]["time"][:4]) == (
            "_classes/digits-1.0.txt",
            "1.0",
            "2026",
        )
        with np.load(io.BytesIO(archive.read(lines[0]["file"])), allow_pickle=False) as arrays:
            assert (arrays["in/x"].shape, arrays["out/y"].shape) == ((1, 30_000), (1, 2))
        assert archive.testzip() is None
    with _archive(api, "group=all&limit=1") as archive:
        assert [name for name in archive.namelist() if name.endswith(".npz")] == [f"press-7/digits/{paths[2].name}"]
    assert api.call("DELETE", "/samples?device=press-7")["deleted"] == 3
    assert api.call("GET", "/samples")["items"] == []
    assert len(list(folder.rglob("*.npz"))) == 3
    assert api.call("GET", "/samples/archive?device=press-7", 404)  # nothing of it is left
    told = [
        (one["action"], one["object"], one["who"], one["detail"].get("samples"))
        for one in reversed(api.call("GET", "/audit?action=samples.")["items"])
    ]
    assert told == [
        *[("samples.fetch", "press-7", "admin", None)] * 3,
        ("samples.download", "press-7", "admin", 3),
        ("samples.download", "all", "admin", 1),
        ("samples.delete", "press-7", "admin", 3),
    ]


def test_what_a_device_does_not_let_leave_stays_there_also_against_the_api(api: Api) -> None:
    _device, folder = _capturing(api, "press-7", may_leave=False)
    keep(folder, 1)
    refused = api.client.post("/api/v1/sample-fetches", json={"device": "press-7"})
    assert (refused.status_code, refused.json()["code"]) == (409, "samples_stay")
    assert "--capture-send" in refused.json()["detail"]
    # A server that believes otherwise gets none either: the device itself says no.
    with api.services.database.session() as session:
        from covey_server.db.tables import Device as Row

        session.execute(update(Row).values(resources={"capture": {"share": 1, "limit_mb": 1, "may_leave": True}}))
    (fetch,), _ = _fetched(api, device="press-7")
    assert (fetch["state"], fetch["reason"], fetch["fetched"]) == ("failed", "not_allowed", 0)


@BOTH
def test_a_group_is_asked_as_far_as_it_can_be(api: Api) -> None:
    for name, number in (("press-1", 1), ("press-2", 2)):
        _device, folder = _capturing(api, name)
        keep(folder, number)
    _enrol(api, "press-3")
    fetches, skipped = _fetched(api, group="all")
    assert [(one["device"], one["state"], one["fetched"]) for one in fetches] == [
        ("press-1", "done", 1),
        ("press-2", "done", 1),
    ]
    assert skipped == {"press-3": "it is not online"}


def test_only_operators_and_only_their_models(api: Api, headers: Callable[..., dict[str, str]]) -> None:
    _device, folder = _capturing(api, "press-7")
    keep(folder, 1)
    keep(folder, 2, model="counting")
    _fetched(api, device="press-7")
    viewer, operator, bound = headers("viewer"), headers("operator"), headers("operator", ["digits"])
    for method, path in (
        ("POST", "/sample-fetches"), ("GET", "/samples"), ("GET", "/samples/archive"), ("DELETE", "/samples?model=digits"),
        ("GET", "/sample-fetches"), ("GET", "/sample-fetches/1"),
    ):  # fmt: skip
        body = {"json": {"device": "press-7"}} if method == "POST" else {}
        api.call(method, path, 403, headers=viewer, **body)
        api.call(method, path, 401, headers={"Authorization": "Bearer nobody"}, **body)
    assert len(api.call("GET", "/samples", headers=operator)["items"]) == 2
    with _archive(api, "model=digits", headers=bound) as archive:
        assert len(archive.namelist()) == 2
    for path in ("/samples", "/samples?model=counting", "/samples/archive", "/samples/archive?model=counting"):
        api.call("GET", path, 403, headers=bound)
    api.call("POST", "/sample-fetches", 403, headers=bound, json={"device": "press-7", "model": "digits"})
    api.call("DELETE", "/samples?model=digits", 403, headers=bound)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sample-fetches", {}, 422),
        ("POST", "/sample-fetches", {"device": "a", "group": "b"}, 422),
        ("POST", "/sample-fetches", {"device": "nobody"}, 404),
        ("POST", "/sample-fetches", {"group": "nobody"}, 404),
        ("POST", "/sample-fetches", {"device": "a", "limit": 0}, 422),
        ("POST", "/sample-fetches", {"device": "a", "limit": 5001}, 422),
        ("POST", "/sample-fetches", {"device": "a", "model": "../x"}, 422),
        ("GET", "/sample-fetches/7", None, 404),
        ("GET", "/samples?device=nobody", None, 404),
        ("GET", "/samples/archive?group=nobody", None, 404),
        ("GET", "/samples/archive?limit=10001", None, 422),
        ("DELETE", "/samples", None, 422),
    ],
)
def test_how_it_says_no(api: Api, method: str, path: str, body: Any, status: int) -> None:
    api.call(method, path, status, **({} if body is None else {"json": body}))
