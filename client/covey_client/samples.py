"""Samples for labelling over the API, and the folder that a user has them in. `Client.samples` is a `Samples`.

What comes from the server is not trusted with the user's disk: names are those that samples have, each sample is looked through and held to
its digest before it appears, and one that is there is never written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from covey_client.errors import BadAnswer, ClientError
from covey_client.transport import Json, Transport, given
from covey_contract.errors import DecodeError
from covey_contract.samples import MAX_SAMPLE_BYTES, check_stored, read_sample
from covey_contract.sources import members

V1 = "/api/v1"
INDEX = "index.jsonl"
MARGIN_BYTES = 64 << 20  # of the user's disk, left free
MAX_ARCHIVE_BYTES = 64 << 30
_MAX_INDEX_BYTES = 64 << 20
_MAX_LABELS_BYTES = 4 << 20
_SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}/[a-z0-9][a-z0-9._-]{0,63}/[0-9]{1,16}-[0-9]{1,12}\.npz")
_LABELS = re.compile(r"_classes/[A-Za-z0-9][A-Za-z0-9._+-]{0,140}\.txt")
_CHUNK = 1 << 20


class Unpacked(NamedTuple):
    """`new`: samples that have come; `there`: those that were in the folder before."""

    new: int
    there: int


class Samples:
    """Over the connection of a `Client`. `device`, `group` and `model` say of which; None: of any."""

    def __init__(self, api: Transport) -> None:
        self._api = api

    def fetch(
        self, device: str | None = None, *, group: str | None = None, model: str | None = None, limit: int | None = None
    ) -> Json:
        """Have the server fetch them from a device, or from a group's: {items: [fetch], skipped: {device: why}}."""
        body = given({"device": device, "group": group, "model": model, "limit": limit})
        return self._api.json("POST", f"{V1}/sample-fetches", json=body)

    def fetch_state(self, number: int) -> Json:
        """{state, found, fetched, left_out, bytes, reason, detail, …}; it has ended if the state is done or failed."""
        return self._api.json("GET", f"{V1}/sample-fetches/{number}")

    def list(
        self,
        device: str | None = None,
        *,
        group: str | None = None,
        model: str | None = None,
        limit: int | None = None,
    ) -> list[Json]:
        """Those that the server has, the newest to come first."""
        return self._api.items(f"{V1}/samples", {"device": device, "group": group, "model": model}, limit=limit)

    def download(
        self,
        folder: Path,
        device: str | None = None,
        *,
        group: str | None = None,
        model: str | None = None,
        limit: int | None = None,
    ) -> Unpacked:
        """Bring those that the server has, the newest `limit` at most, into a folder and its `index.jsonl`. May be repeated. Raises
        `ClientError`, `OSError`."""
        params = given({"device": device, "group": group, "model": model, "limit": limit})
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_room(folder, 0)
        with tempfile.TemporaryDirectory(prefix=".covey-", dir=folder) as place:
            file = Path(place) / "samples.zip"
            self._api.save(f"{V1}/samples/archive", file, MAX_ARCHIVE_BYTES, params=params)
            return unpack(file, folder)

    def delete(self, device: str | None = None, *, group: str | None = None, model: str | None = None) -> int:
        """Delete them on the server; how many. What devices keep stays there."""
        params = given({"device": device, "group": group, "model": model})
        return int(self._api.json("DELETE", f"{V1}/samples", params=params).get("deleted", 0))


def unpack(file: Path, folder: Path) -> Unpacked:
    """Samples of an archive into a folder: each as a whole or not at all, then the index. Lines of the index that are there stay as
    somebody has written them. Raises `BadAnswer` for an archive that is none, `ClientError`, `OSError`."""
    new = there = 0
    try:
        with file.open("rb") as opened:
            found = members(opened)
        with zipfile.ZipFile(file) as archive:
            for member in found:
                check_stored(member, file.stat().st_size)
            lines = _index(archive)
            _check_names(found, lines)
            _check_room(folder, sum(one.file_size for one in found))
            for member in found:
                if member.filename == INDEX:
                    continue
                if _unpacked(archive, member, folder, lines.get(member.filename)):
                    new += member.filename in lines
                else:
                    there += member.filename in lines
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, DecodeError) as error:
        raise BadAnswer(f"the server's archive of samples is not to be used: {error}") from error
    _write_index(folder / INDEX, (lines[one.filename] for one in found if one.filename in lines))
    return Unpacked(new, there)


def _index(archive: zipfile.ZipFile) -> dict[str, Json]:
    """Its lines, by file. Raises `ValueError`."""
    try:
        member = archive.getinfo(INDEX)
    except KeyError:
        raise ValueError("it has no index") from None
    if member.file_size > _MAX_INDEX_BYTES:
        raise ValueError("its index is too large")
    lines: dict[str, Json] = {}
    for text in archive.read(member).decode().splitlines():
        line = json.loads(text)
        if not isinstance(line, dict) or not isinstance(line.get("file"), str):
            raise ValueError("a line of its index names no file")
        lines[line["file"]] = line
    return lines


def _check_names(found: Iterable[zipfile.ZipInfo], lines: dict[str, Json]) -> None:
    """Raises `ValueError`."""
    for member in found:
        name = member.filename
        if name == INDEX or (_LABELS.fullmatch(name) and member.file_size <= _MAX_LABELS_BYTES):
            continue
        if not _SAMPLE.fullmatch(name) or ".." in name or name not in lines or member.file_size > MAX_SAMPLE_BYTES:
            raise ValueError(f"it has a member {name[:80]!r}")


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, line: Json | None) -> bool:
    """Whether it is new. `line` None: a file of class names. Raises `ClientError`, `OSError`, and what `unpack` turns into `BadAnswer`."""
    path = folder / member.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    digest = hashlib.sha256()
    try:
        with archive.open(member) as source, part.open("w+b") as place:
            while chunk := source.read(_CHUNK):
                place.write(chunk)
                digest.update(chunk)
            if line is not None:
                if digest.hexdigest() != line.get("sha256"):
                    raise ValueError(f"{member.filename} is not what the index says")
                read_sample(place)
            place.flush()
            os.fsync(place.fileno())
        if path.exists():
            if line is not None and _digest(path) != digest.hexdigest():
                raise ClientError(f"{path} is there already, with other bytes; it is left as it is")
            return False
        part.replace(path)
        return True
    finally:
        part.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: Path, size: int) -> None:
    """Raises `ClientError`."""
    if shutil.disk_usage(folder).free < size + MARGIN_BYTES:
        raise ClientError(f"the disk of {folder} has no room for {size} bytes more; nothing was written")


def _write_index(path: Path, lines: Iterable[Json]) -> None:
    """What is there, and the lines of files that it does not name. Raises `ClientError`, `OSError`."""
    kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        named: set[Any] = {json.loads(text)["file"] for text in kept if text.strip()}
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{path} has a line that is no JSON object with a file; mend it and ask again") from error
    kept += [json.dumps(line, ensure_ascii=False) for line in lines if line["file"] not in named]
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in kept)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
