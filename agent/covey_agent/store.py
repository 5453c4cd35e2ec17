"""Builds on disk, by content: `blobs/SHA256` holds each file once, `builds/DIGEST/` a build's files as hard links to its blobs.

Invariants: a blob's bytes have the digest of its name; a folder in `builds` is whole (it appears by rename); everything is
read-only; garbage collection takes only what the caller does not protect.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from covey_agent import durable
from covey_contract.building import MANIFEST_FILE
from covey_contract.errors import ContractError
from covey_contract.manifest import FileEntry, Manifest, build_digest
from covey_contract.wire import decode

log = logging.getLogger(__name__)

CACHE_SUFFIX = ".cache"  # of a folder beside a build: what a runner has compiled from it
_CHUNK = 1 << 20


class CorruptError(Exception):
    """A file on disk is not what its digest says."""

    def __init__(self, path: str, sha256: str) -> None:
        super().__init__(f"{path} is not what it was when it was verified")
        self.sha256 = sha256


class Store:
    """All paths of the agent's builds. `prepare` makes the folders."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._builds = folder / "builds"

    def prepare(self) -> None:
        """Make the folders, and sweep what a kill has left half-made."""
        for folder in (self._blobs, self._builds):
            durable.make_folder(folder)
            for leftover in folder.glob(f".*{durable.TEMPORARY}"):
                _remove(leftover)

    def blob(self, sha256: str) -> Path:
        return self._blobs / sha256

    def build(self, digest: str) -> Path:
        return self._builds / digest

    def has_blob(self, entry: FileEntry) -> bool:
        """Raises `OSError` if the disk does not say: what is only not readable now must not be taken for missing."""
        try:
            return self.blob(entry.sha256).stat().st_size == entry.size
        except FileNotFoundError:
            return False

    def has_build(self, digest: str) -> bool:
        return (self.build(digest) / MANIFEST_FILE).is_file()

    def adopt(self, path: Path, entry: FileEntry) -> None:
        """Take a fetched file as a blob, after reading it whole. Raises `CorruptError`, and then the file stays where it is."""
        if not self.has_blob(entry):
            if path.stat().st_size != entry.size or digest_of(path) != entry.sha256:
                raise CorruptError(entry.path, entry.sha256)
            path.chmod(0o444)
            durable.sync_file(path)
            path.replace(self.blob(entry.sha256))
            durable.sync_folder(self._blobs)

    def stage(self, manifest: Manifest, manifest_bytes: bytes) -> Path:
        """Make the build's folder out of its blobs, each read and verified now. Idempotent.

        Raises `CorruptError` after removing a blob that is damaged, so that it is fetched again.
        """
        digest = build_digest(manifest_bytes)
        for entry in manifest.files:
            self.scrub(entry)
        if self._is_whole(digest, manifest, manifest_bytes):
            return self.build(digest)
        temporary = self._builds / f".{digest}{durable.TEMPORARY}"
        _remove(temporary)
        _remove(self.build(digest))
        temporary.mkdir()
        folders = {temporary}
        for entry in manifest.files:
            place = temporary / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            folders.update(parent for parent in place.parents if parent.is_relative_to(temporary))
            os.link(self.blob(entry.sha256), place)
        durable.write(temporary / MANIFEST_FILE, manifest_bytes, mode=0o444)
        for folder in folders:
            durable.sync_folder(folder)
        temporary.replace(self.build(digest))
        durable.sync_folder(self._builds)
        return self.build(digest)

    def _is_whole(self, digest: str, manifest: Manifest, manifest_bytes: bytes) -> bool:
        """Whether the folder holds just the manifest's files, as links to the (verified) blobs."""
        folder = self.build(digest)
        try:
            found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
            return (
                found == {MANIFEST_FILE, *(entry.path for entry in manifest.files)}
                and (folder / MANIFEST_FILE).read_bytes() == manifest_bytes
                and all((folder / entry.path).samefile(self.blob(entry.sha256)) for entry in manifest.files)
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def verify(self, digest: str) -> Manifest:
        """Read every byte of a staged build again. Raises `CorruptError` if it is not what was staged, `OSError` if that cannot
        be told now."""
        folder = self.build(digest)
        try:
            manifest_bytes = (folder / MANIFEST_FILE).read_bytes()
            if build_digest(manifest_bytes) != digest:
                raise CorruptError(MANIFEST_FILE, digest)
            manifest = decode(Manifest, manifest_bytes)
            self.stage(manifest, manifest_bytes)
        except (FileNotFoundError, NotADirectoryError, ContractError) as error:
            raise CorruptError(f"build {digest[:12]} ({error})", digest) from error
        return manifest

    def scrub(self, entry: FileEntry) -> None:
        """Read a blob whole. Raises `CorruptError` after removing it if it is not what its name says, or gone; `OSError` if it cannot be
        read now."""
        if not self.has_blob(entry) or digest_of(self.blob(entry.sha256)) != entry.sha256:
            self.discard(entry.sha256)
            raise CorruptError(entry.path, entry.sha256)

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest of a staged build, if it is here and readable."""
        try:
            return decode(Manifest, (self.build(digest) / MANIFEST_FILE).read_bytes())
        except (OSError, ContractError):
            return None

    def discard(self, sha256: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.blob(sha256).unlink()

    def missing(self, manifest: Manifest) -> list[FileEntry]:
        """The build's files that are not here yet."""
        return [entry for entry in manifest.files if not self.has_blob(entry)]

    def alike(self, sizes: Collection[int]) -> list[Path]:
        """All blobs, those first that are nearest in size to one of `sizes`."""
        with os.scandir(self._blobs) as entries:
            found = [(entry.stat().st_size, entry.path) for entry in entries if not entry.name.startswith(".")]
        return [
            Path(path)
            for _, path in sorted((min((abs(size - one) for one in sizes), default=0), path) for size, path in found)
        ]

    def used(self) -> int:
        """Bytes of all blobs."""
        return sum(entry.stat().st_size for entry in os.scandir(self._blobs) if entry.is_file(follow_symlinks=False))

    def collect(self, keep: Collection[str]) -> list[str]:
        """Remove every build but those of `keep`, with its cache, and every blob that none of these needs.

        Returns the builds removed. A runner may keep what it has compiled in `builds/DIGEST.cache`; it lives as long as its build.
        If a build that is to be kept cannot be read, no blob is removed: it may be one of its own.
        """
        unneeded = [path for path in self._builds.iterdir() if path.name.removesuffix(CACHE_SUFFIX) not in keep]
        for path in unneeded:
            _remove(path)
        removed = [path.name for path in unneeded if not path.name.endswith(CACHE_SUFFIX)]
        needed: set[str] = set()
        for digest in keep:
            if not self.build(digest).exists():
                continue
            manifest = self.manifest(digest)
            if manifest is None:
                log.warning("build %s cannot be read; no blob is collected", digest[:12])
                return removed
            needed.update(entry.sha256 for entry in manifest.files)
        for blob in list(self._blobs.iterdir()):
            if blob.name not in needed:
                _remove(blob)
        return removed


def digest_of(path: Path) -> str:
    """SHA-256 in hex of a file's bytes; raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
