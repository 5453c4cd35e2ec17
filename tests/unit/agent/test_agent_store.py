"""Builds on disk: whole or not there, read-only, and never collected while they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey_agent import durable
from covey_agent.book import Book, read_state
from covey_agent.core.state import AgentState, ModelRecord
from covey_agent.store import CorruptError, Store
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]


def put(store: Store, build: RandomBuild, folder: Path) -> Path:
    for entry, data in zip(build.manifest.files, build.contents[1:], strict=True):
        path = folder / "incoming"
        path.write_bytes(data)
        store.adopt(path, entry)
    return store.stage(build.manifest, build.manifest_bytes)


def test_a_staged_build_is_read_only_and_shares_its_blobs(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((1000, 2000))
    folder = put(store, build, tmp_path)
    assert store.verify(build.digest) == build.manifest
    for entry in build.manifest.files:
        assert (folder / entry.path).samefile(store.blob(entry.sha256))
        assert (folder / entry.path).stat().st_mode & 0o222 == 0
    assert store.used() == 3000
    assert store.missing(build.manifest) == []


def test_an_extra_file_in_a_build_is_not_kept(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((1000,))
    folder = put(store, build, tmp_path)
    (folder / "extra.so").write_bytes(b"x")
    store.verify(build.digest)
    assert sorted(path.name for path in folder.iterdir()) == ["f0.bin", "manifest.json"]


def test_a_swapped_file_is_found_out(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((1000,))
    folder = put(store, build, tmp_path)
    (folder / "f0.bin").unlink()
    (folder / "f0.bin").write_bytes(b"y" * 1000)
    store.verify(build.digest)
    assert (folder / "f0.bin").read_bytes() == build.contents[1]
    blob = store.blob(build.manifest.files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"y" * 1000)
    with pytest.raises(CorruptError):
        store.verify(build.digest)
    assert not blob.exists()


def test_a_file_that_is_not_its_digest_is_not_adopted(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((1000,))
    (tmp_path / "incoming").write_bytes(b"z" * 1000)
    with pytest.raises(CorruptError):
        store.adopt(tmp_path / "incoming", build.manifest.files[0])
    assert store.missing(build.manifest) == list(build.manifest.files)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.sets(st.integers(0, 4)))
def test_collection_takes_just_what_is_not_protected(
    tmp_path_factory: pytest.TempPathFactory, random_build: Make, keep: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder)
    store.prepare()
    # The builds share their second file, by its content.
    builds = [random_build((100 + n, 0), n) for n in range(5)]
    for build in builds:
        put(store, build, folder)
    protected = {builds[n].digest for n in keep}
    store.collect(protected)
    assert {path.name for path in (folder / "builds").iterdir()} == protected
    for n in keep:
        assert store.verify(builds[n].digest)
    needed = {entry.sha256 for n in keep for entry in builds[n].manifest.files}
    assert {path.name for path in (folder / "blobs").iterdir()} == needed


def test_no_blob_is_collected_while_a_protected_build_cannot_be_read(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((1000,))
    folder = put(store, build, tmp_path)
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_bytes(b"{")
    store.collect({build.digest})
    assert store.has_blob(build.manifest.files[0])


def test_what_a_kill_left_half_made_is_swept(tmp_path: Path, store: Store) -> None:
    (tmp_path / "builds" / ".abc.tmp").mkdir()
    (tmp_path / "blobs" / ".abc.1.tmp").write_bytes(b"")
    store.prepare()
    assert not list((tmp_path / "builds").iterdir())
    assert not list((tmp_path / "blobs").iterdir())


# --- the book ---------------------------------------------------------------------------------------------------------


def changed(book: Book, counter: int) -> None:
    book.change(lambda _: AgentState(counter=counter, models={"m": ModelRecord(active=f"{counter:064d}")}))
    assert book.state.generation


def test_the_book_is_read_back(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert book.load() == AgentState()
    changed(book, 5)
    assert Book(tmp_path).load() == book.state == read_state(tmp_path)


def test_counters_never_decrease(tmp_path: Path) -> None:
    book = Book(tmp_path)
    changed(book, 5)
    changed(book, 3)
    assert book.state.counter == 5


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 50, b"0" * 64 + b"\n{}"])
def test_one_damaged_copy_loses_nothing_and_two_begin_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book(tmp_path)
    changed(book, 5)
    (tmp_path / "state.json").write_bytes(damage)
    assert Book(tmp_path).load().counter == 5
    assert (tmp_path / "state.json.damaged").exists()
    assert "damaged" in caplog.text
    (tmp_path / "state.copy.json").write_bytes(damage)
    assert Book(tmp_path).load() == AgentState()


def test_a_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(tmp_path)
    changed(book, 5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="No space"):
        changed(book, 6)
    assert book.state.counter == 5
    assert read_state(tmp_path).counter == 5


def test_a_durable_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write(tmp_path / "a", b"old", mode=0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600

    def broken(_file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    from covey_agent.store import digest_of

    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert digest_of(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_a_runners_cache_lives_as_long_as_its_build(tmp_path: Path, store: Store, random_build: Make) -> None:
    kept, dropped = random_build((100,), seed=1), random_build((200,), seed=2)
    caches = {}
    for build in (kept, dropped):
        folder = put(store, build, tmp_path)
        caches[build.digest] = folder.with_name(folder.name + ".cache")
        caches[build.digest].mkdir()
        (caches[build.digest] / "compiled.blob").write_bytes(b"c")
    assert store.collect([kept.digest]) == [dropped.digest]
    assert (caches[kept.digest] / "compiled.blob").read_bytes() == b"c"
    assert not caches[dropped.digest].exists()
    assert store.verify(kept.digest) == kept.manifest
