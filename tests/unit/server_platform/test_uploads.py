"""Uploads in pieces, as tus has them: where they stand, whose they are, what ends them, and pushes that name them."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from covey_server.errors import Conflict, NotFound, TooMany
from covey_server.registry.uploads import KEEP_S, MAX_OPEN, Said, Uploads

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {"Content-Type": "application/offset+octet-stream"}
GRAPH = bytes(range(256)) * 300


def told(**values: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def begin(site: Site, size: int, role: str = "operator", **metadata: str) -> Any:
    headers = {**site.as_(role), **TUS, "Upload-Length": str(size), "Upload-Metadata": told(**metadata)}
    return site.client.post("/api/v1/uploads", headers=headers)


def go_on(site: Site, where: str, offset: int, data: bytes, **headers: str) -> Any:
    headers = {**site.as_("operator"), **TUS, **PIECE, "Upload-Offset": str(offset), **headers}
    return site.client.patch(where, content=data, headers=headers)


def stands(site: Site, where: str, role: str = "operator") -> Any:
    return site.client.head(where, headers={**site.as_(role), **TUS})


def test_a_file_comes_in_pieces_and_is_pushed(site: Site) -> None:
    answer = begin(site, len(GRAPH), filename="digits.onnx")
    assert answer.status_code == 201
    where = answer.headers["location"]
    assert go_on(site, where, 0, GRAPH[:1000]).headers["upload-offset"] == "1000"
    now = stands(site, where)
    assert (now.headers["upload-offset"], now.headers["upload-length"]) == ("1000", str(len(GRAPH)))
    assert "GMT" in now.headers["upload-expires"]
    early = site.push(files={}, source_upload=where.rpartition("/")[2])
    assert (early.status_code, early.json()["code"]) == (409, "upload_incomplete")
    assert go_on(site, where, 1000, GRAPH[1000:]).status_code == 204
    pushed = site.push(files={}, source_upload=where.rpartition("/")[2])
    assert pushed.status_code == 201, pushed.text
    sha256 = digest(GRAPH)
    assert pushed.json()["source"]["sha256"] == sha256
    assert site.services.blobs.path(sha256).read_bytes() == GRAPH
    assert go_on(site, where, len(GRAPH), b"").json()["code"] == "upload_complete"
    # The answer may have been lost: the same again is harmless.
    assert site.push(files={}, source_upload=where.rpartition("/")[2]).status_code == 200


def test_who_begins_again_goes_on(site: Site) -> None:
    said = {"filename": "digits.onnx", "sha256": digest(GRAPH)}
    where = begin(site, len(GRAPH), **said).headers["location"]
    go_on(site, where, 0, GRAPH[:500])
    again = begin(site, len(GRAPH), **said)
    assert (again.headers["location"], again.headers["upload-offset"]) == (where, "500")
    # Nobody else learns of it, and another file is another upload.
    assert begin(site, len(GRAPH), role="admin", **said).headers["upload-offset"] == "0"
    assert begin(site, len(GRAPH), filename="b.onnx").headers["location"] != where


def test_it_goes_on_only_where_it_stands(site: Site) -> None:
    where = begin(site, 100, filename="a.onnx").headers["location"]
    go_on(site, where, 0, b"x" * 10)
    for offset in (0, 9, 11):
        answer = go_on(site, where, offset, b"y")
        assert (answer.status_code, answer.json()["code"]) == (409, "offset_mismatch")
    assert go_on(site, where, 10, b"x" * 91).status_code == 413
    assert stands(site, where).headers["upload-offset"] == "10"


def test_an_upload_is_its_owners(site: Site) -> None:
    where = begin(site, 10, filename="a.onnx").headers["location"]
    assert stands(site, where, "admin").status_code == 404
    assert site.client.head(where, headers=TUS).status_code == 401
    assert stands(site, where, "viewer").status_code == 403
    go_on(site, where, 0, b"x" * 10)
    answer = site.push(files={}, source_upload=where.rpartition("/")[2], role="admin")
    assert answer.status_code == 404


def test_what_came_is_not_what_was_announced(site: Site) -> None:
    where = begin(site, len(GRAPH), filename="digits.onnx", sha256=digest(b"another")).headers["location"]
    go_on(site, where, 0, GRAPH)
    answer = site.push(files={}, source_upload=where.rpartition("/")[2])
    assert answer.status_code == 422
    assert "not the announced one" in answer.json()["detail"]
    assert site.client.get("/api/v1/models", headers=site.as_("viewer")).json()["items"] == []


def test_a_pickle_is_refused_however_it_comes(site: Site) -> None:
    pickled = b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94."
    where = begin(site, len(pickled), filename="digits.onnx").headers["location"]
    go_on(site, where, 0, pickled)
    answer = site.push(files={}, source_upload=where.rpartition("/")[2])
    assert (answer.status_code, answer.json()["code"]) == (422, "pickle_refused")


def test_both_ways_at_once(site: Site) -> None:
    where = begin(site, 1, filename="digits.onnx").headers["location"]
    assert site.push(source_upload=where.rpartition("/")[2]).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "-1"}, 422),
        ({"Upload-Length": "many"}, 422),
        ({"Upload-Length": "0"}, 422),
        ({"Upload-Length": "99999999999"}, 413),
        ({}, 422),
        ({"Upload-Length": "5", "Upload-Metadata": "filename ?"}, 422),
        ({"Upload-Length": "5", "Upload-Metadata": told(sha256="abc")}, 422),
        ({"Upload-Length": "5", "Upload-Metadata": told(filename="a" * 200)}, 422),
        ({"Upload-Length": "5", "Tus-Resumable": "0.2.2"}, 412),
    ],
)
def test_a_beginning_that_cannot_be_meant(site: Site, headers: dict[str, str], status: int) -> None:
    answer = site.client.post("/api/v1/uploads", headers={**site.as_("operator"), **TUS, **headers})
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_a_piece_of_another_type(site: Site) -> None:
    where = begin(site, 5, filename="a.onnx").headers["location"]
    assert go_on(site, where, 0, b"x", **{"Content-Type": "text/plain"}).status_code == 415
    assert stands(site, "/api/v1/uploads/..").status_code in (404, 405)
    assert stands(site, f"/api/v1/uploads/{'0' * 32}").status_code == 404


def test_what_this_server_speaks(site: Site) -> None:
    answer = site.client.options("/api/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,expiration,termination"


def test_forgotten_by_hand(site: Site) -> None:
    where = begin(site, 5, filename="a.onnx").headers["location"]
    assert site.client.delete(where, headers={**site.as_("operator"), **TUS}).status_code == 204
    assert stands(site, where).status_code == 404


def test_forgotten_after_a_day_and_not_before(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    one, other = (uploads.create(Said(owner="a", filename=name, size=10)) for name in ("1", "2"))
    hours = time.time() - KEEP_S + 3600
    os.utime(uploads.data(one.id), (hours, hours))
    os.utime(uploads.data(other.id), (hours - 7200, hours - 7200))
    left = tmp_path / "half.new"  # a kill between two steps of a beginning
    left.mkdir()
    os.utime(left, (hours - 7200, hours - 7200))
    uploads.sweep()
    assert uploads.get(one.id, "a").offset == 0
    with pytest.raises(NotFound):
        uploads.get(other.id, "a")
    assert not left.exists()


def test_a_person_may_have_so_many_open_and_others_theirs(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    for number in range(MAX_OPEN):
        uploads.create(Said(owner="a", filename=f"{number}", size=1))
    with pytest.raises(TooMany):
        uploads.create(Said(owner="a", filename="one more", size=1))
    uploads.create(Said(owner="b", filename="mine", size=1))


def test_a_connection_that_hangs_and_the_one_that_replaces_it(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1 << 20)
    upload = uploads.create(Said(owner="a", filename="f", size=8)).id
    with uploads.go_on(upload, "a", 0) as hangs:
        hangs.write(b"abcd")
        with uploads.go_on(upload, "a", 4) as goes_on:
            goes_on.write(b"ef")
            with pytest.raises(Conflict):
                hangs.write(b"ef")
            goes_on.write(b"gh")
    assert uploads.data(upload).read_bytes() == b"abcdefgh"
    assert uploads.finished(upload, "a").whole


def test_many_begin_the_same_at_once(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    said = Said(owner="a", filename="f", size=10, sha256="0" * 64)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(uploads.create(said).id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
