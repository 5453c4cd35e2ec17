from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from covey_server.errors import NotFound, TooLarge
from covey_server.registry.blobs import BlobStore


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_is_put_is_there_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = b"x" * 3_000_000
    digest = hashlib.sha256(data).hexdigest()
    assert store.put(io.BytesIO(data), 1 << 30) == (digest, len(data))
    assert store.put(io.BytesIO(data), 1 << 30) == (digest, len(data))
    with store.open(digest) as file:
        assert file.read() == data
    assert store.size(digest) == len(data)
    assert _files(tmp_path) == [digest]


def test_more_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        BlobStore(tmp_path).put(io.BytesIO(b"12345"), 4)
    assert _files(tmp_path) == []


def test_a_writer_left_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BlobStore(tmp_path).writer(100) as writer:
        writer.write(b"half")
    assert _files(tmp_path) == []


def test_what_a_crash_left_is_cleared(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "half").write_bytes(b"half")
    store.clear_incoming()
    assert _files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_never_reaches_the_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        BlobStore(tmp_path).open(name)
