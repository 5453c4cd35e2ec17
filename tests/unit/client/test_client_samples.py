"""Samples from the server into a user's folder: whole, checked, nowhere else, and nothing of the user's is written over."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from covey_client import samples
from covey_client.cli import main
from covey_client.errors import BadAnswer, ClientError
from covey_client.samples import INDEX, unpack
from covey_hil.testing.made_samples import sample, zipped

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

NAME, OTHER = "press-1/digits/1790000000000-000001.npz", "press-1/digits/1790000001000-000002.npz"


def line(name: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "label": None, **more}


def index(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


GOOD = {NAME: sample(), OTHER: sample(time_ms=7)}
LINES = index(*(line(name, data) for name, data in GOOD.items()))
LABELS = "_classes/digits-1.0.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (made := tmp_path / "to").mkdir()
    return made


def packed(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    (path := folder.parent / "samples.zip").write_bytes(zipped(members, compression))
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file()}


def test_samples_come_whole_and_once(folder: Path) -> None:
    path = packed(folder, {LABELS: b"zero\none\n", **GOOD, INDEX: LINES})
    assert unpack(path, folder) == (2, 0)
    assert {name: (folder / name).read_bytes() for name in GOOD} == GOOD
    assert (folder / LABELS).read_bytes() == b"zero\none\n"
    assert files(folder) == {"samples.zip", *(f"to/{name}" for name in (LABELS, INDEX, *GOOD))}
    assert unpack(path, folder) == (0, 2)
    assert (folder / INDEX).read_bytes() == LINES


def test_lines_that_somebody_has_written_stay(folder: Path) -> None:
    unpack(packed(folder, {NAME: GOOD[NAME], INDEX: index(line(NAME, GOOD[NAME]))}), folder)
    labelled = index(line(NAME, GOOD[NAME], label=7), {"file": "mine/x.npz", "label": 3})
    (folder / INDEX).write_bytes(labelled)
    assert unpack(packed(folder, {**GOOD, INDEX: LINES}), folder) == (1, 1)
    assert (folder / INDEX).read_bytes() == labelled + index(line(OTHER, GOOD[OTHER]))


def test_a_file_that_is_there_with_other_bytes_is_left(folder: Path) -> None:
    path = packed(folder, {**GOOD, INDEX: LINES})
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_bytes(b"mine")
    with pytest.raises(ClientError, match="left as it is"):
        unpack(path, folder)
    assert (folder / NAME).read_bytes() == b"mine"


def test_an_index_that_somebody_has_spoiled_is_said_and_left(folder: Path) -> None:
    path = packed(folder, {**GOOD, INDEX: LINES})
    (folder / INDEX).write_text("no json\n")
    with pytest.raises(ClientError, match="mend it"):
        unpack(path, folder)
    assert (folder / INDEX).read_text() == "no json\n"


BAD: dict[str, dict[str, bytes]] = {
    "a way out": {"../evil.npz": sample()},
    "a way out within": {"press-1/digits/../../../evil.npz": sample()},
    "an absolute name": {"/tmp/covey-evil.npz": sample()},  # noqa: S108  # it is never written
    "a file that no index names": {"press-1/digits/5-5.npz": sample()},
    "other bytes than the index says": {NAME: sample(version="6.6")},
    "what is no sample": {NAME: b"cos\nsystem\n", INDEX: index(line(NAME, b"cos\nsystem\n"))},
    "no index": {INDEX: b""},
    "an index that is none": {INDEX: b"[]\n"},
    "an index that is no text": {INDEX: b"\xff\n"},
    "a hidden file": {"press-1/digits/.bashrc": b"x"},
    "class names of a path": {"_classes/../x.txt": b"x"},
}


@pytest.mark.parametrize("what", BAD)
def test_an_archive_that_is_not_to_be_trusted_writes_nothing_of_it(folder: Path, what: str) -> None:
    members = (
        {INDEX: LINES, **BAD[what]} if NAME in BAD[what] or INDEX in BAD[what] else {**GOOD, INDEX: LINES, **BAD[what]}
    )
    if BAD[what] == {INDEX: b""}:
        members = dict(GOOD)
    path = packed(folder, members)
    with pytest.raises(BadAnswer):
        unpack(path, folder)
    assert not any(name.endswith((".part", "evil.npz", ".bashrc")) for name in files(folder))
    assert not (folder / INDEX).exists()


def test_a_bomb_is_refused_before_it_is_unpacked(folder: Path) -> None:
    bomb = bytes(100_000_000)
    path = packed(folder, {NAME: bomb, INDEX: index(line(NAME, bomb))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(BadAnswer, match="packed"):
        unpack(path, folder)
    assert files(folder) == {"samples.zip"}


def test_what_a_disk_has_no_room_for_is_not_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(ClientError, match="no room"):
        unpack(packed(folder, {**GOOD, INDEX: LINES}), folder)
    assert files(folder) == {"samples.zip"}


# --- the command --------------------------------------------------------------------------------------------------------


def fetch(state: str, fetched: int, **more: Any) -> dict[str, Any]:
    told = {"id": 1, "device": "press-1", "state": state, "reason": "none", "detail": "", "found": 2, "left_out": 0}
    return {**told, "fetched": fetched, "bytes": 1000 * fetched, **more}


class Covey:
    def __init__(self, server: FakeServer, capture: pytest.CaptureFixture[str]) -> None:
        self._server, self._capture = server, capture

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main(["--server", self._server.url, "device", "samples", *words])
        said = self._capture.readouterr()
        return code, said.out, said.err


@pytest.fixture
def covey(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Covey:
    return Covey(server, capsys)


def test_fetch_wait_and_bring(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    server.on("POST /api/v1/sample-fetches", {"items": [fetch("waiting", 0)], "skipped": {}}, status=202)
    server.on("GET /api/v1/sample-fetches/1", fetch("running", 1), fetch("done", 2))
    server.raw("GET /api/v1/samples/archive", zipped({**GOOD, INDEX: LINES}))
    code, out, said = covey("press-1", "--model", "digits", "--limit", "5", "--to", str(tmp_path / "to"))
    assert (code, "2 new, 0 were there before" in out) == (0, True)
    assert "1 of 2 samples" in said
    assert server.asked[0].json == {"device": "press-1", "model": "digits", "limit": 5}
    assert server.asked[-1].query == {"device": ["press-1"], "model": ["digits"], "limit": ["5"]}
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [INDEX, "press-1"]
    assert (tmp_path / "to").stat().st_mode & 0o077 == 0


def test_a_fetch_that_fails_says_why(covey: Covey, server: FakeServer) -> None:
    server.on("POST /api/v1/sample-fetches", {"items": [fetch("waiting", 0)], "skipped": {}}, status=202)
    server.on("GET /api/v1/sample-fetches/1", fetch("failed", 0, reason="not_allowed", detail="its settings"))
    code, out, _ = covey("press-1")
    assert (code, "not_allowed: its settings" in out) == (1, True)


def test_devices_of_a_group_that_are_left_out_are_named(covey: Covey, server: FakeServer) -> None:
    skipped = {"press-2": "it is not online"}
    server.on("POST /api/v1/sample-fetches", {"items": [fetch("done", 2)], "skipped": skipped}, status=202)
    server.on("GET /api/v1/sample-fetches/1", fetch("done", 2))
    code, out, said = covey("--group", "line-a")
    assert (code, "press-2 is left out: it is not online" in said) == (0, True)
    server.on("POST /api/v1/sample-fetches", {"items": [], "skipped": skipped}, status=202)
    assert covey("--group", "line-a")[0] == 1


def test_nothing_to_bring_is_no_failure(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    server.refuse("GET /api/v1/samples/archive", 404, "no such samples are here", code="no_samples")
    code, out, _ = covey("press-1", "--here", "--to", str(tmp_path / "to"))
    assert (code, "0 new" in out) == (0, True)


def test_list_and_delete(covey: Covey, server: FakeServer) -> None:
    row = {"file": NAME, "version": "1.0", "target": "onnxruntime-int8", "size": 1000}
    server.on("GET /api/v1/samples", {"items": [row], "next": None})
    code, out, _ = covey("press-1", "--here")
    assert (code, NAME in out) == (0, True)
    server.on("DELETE /api/v1/samples", {"deleted": 3})
    code, out, _ = covey("--group", "line-a", "--model", "digits", "--delete")
    assert (code, out) == (0, "3 samples were deleted on the server\n")
    assert server.asked[-1].query == {"group": ["line-a"], "model": ["digits"]}


@pytest.mark.parametrize(
    "words", [(), ("press-1", "--group", "a"), ("press-1", "--limit", "0"), ("press-1", "--limit", "5001")]
)
def test_wrong_arguments(covey: Covey, words: tuple[str, ...]) -> None:
    code, out, said = covey(*words)
    assert (code, out, said.count("\n")) == (2, "", 1)
