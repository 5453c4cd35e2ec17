"""The client workflow (TUF specification 1.0.34, section 5) over a folder and a source: `refresh`, `find`, `download`.

The folder always holds a state that was trusted once. An update that is refused half way keeps what had passed before it, as the
specification has it: a new root counts even if the timestamp under it is bad.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Root, TargetFile, Targets, Timestamp

from covey_agent import durable
from covey_agent.tuf import trusted as rules
from covey_agent.tuf.errors import Missing, Refused, RepositoryError
from covey_agent.tuf.folder import MetadataFolder
from covey_agent.tuf.search import MAX_ROLES, Search
from covey_agent.tuf.source import Source, read
from covey_agent.tuf.trusted import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Trusted
from covey_contract.reasons import Reason

# A signed field of our server's timestamps: when it was signed. Others have none, and then it tells nothing.
ISSUED = "x-covey-issued"


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest files, in bytes, where signed metadata does not say how large; and how many roots may follow at once."""

    root: int = 512_000
    timestamp: int = 16_384
    snapshot: int = 2_000_000
    targets: int = 5_000_000
    rotations: int = 256
    roles: int = MAX_ROLES


class Updater:
    """`now` is the effective time of the whole update. `embedded`: the root that came with the device; without it, the folder's
    `root.json` is where trust begins. Used within the folder's lock."""

    def __init__(
        self,
        folder: MetadataFolder,
        source: Source,
        now: datetime,
        *,
        embedded: bytes | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._folder = folder
        self._source = source
        self._now = now
        self._embedded = embedded
        self._limits = limits or Limits()
        self._trusted: Trusted | None = None

    @property
    def trusted(self) -> Trusted:
        if self._trusted is None:
            raise RuntimeError("refresh comes first")
        return self._trusted

    def refresh(self) -> Trusted:
        """Bring the top-level metadata up to date. Raises `RepositoryError` of one kind or another."""
        self._trusted = self._start()
        self._update_root()
        self._update_timestamp()
        self._update_snapshot()
        self._load_role(TARGETS, ROOT)
        return self.trusted

    def find(self, path: str) -> TargetFile:
        """What the repository says of a target: length, hashes, custom fields. After `refresh`. Raises `Refused` with
        `NOT_RELEASED` if no delegation leads to it."""
        search = Search(path, self._limits.roles)
        while (step := search.next()) is not None:
            role, delegator = step
            target = search.visit(role, self._load_role(role, delegator))
            if target is not None:
                if not rules.is_pinned(target.hashes):
                    raise Refused(Reason.NOT_RELEASED, f"{path} is pinned by no strong hash")
                return target
        raise Refused(Reason.NOT_RELEASED, f"{path} is not in the repository")

    def download(self, target: TargetFile, source: Source, place: Path) -> bool:
        """The target's file in `place`, verified. Whether anything had to be fetched; a file that is right already stays."""
        if _holds(place, target):
            return False
        names = target.get_prefixed_paths() if self.trusted.root.consistent_snapshot else [target.path]
        with _replacing(place) as file:
            try:
                for piece in source.pieces(quote(names[0], safe="/"), target.length):
                    file.write(piece)
                target.verify_length_and_hashes(file)
            except LengthOrHashMismatchError as error:
                raise Refused(Reason.DIGEST_MISMATCH, f"{target.path} is not what was released: {error}") from error
        return True

    def time_floor_ms(self) -> int:
        """The newest time that signed metadata has shown; Unix milliseconds."""
        return self._folder.time_floor_ms()

    # --- the steps of a refresh ---------------------------------------------------------------------------------

    def _start(self) -> Trusted:
        """The root that trust begins with (5.2)."""
        if self._embedded is not None:
            trusted = rules.start(self._embedded)
            if self._newest_stored_root() == 0:
                self._folder.write_root(trusted.root.version, self._embedded)
            return trusted
        data = self._folder.read(ROOT, self._limits.root)
        if data is None:
            raise RepositoryError(Reason.METADATA_INVALID, f"{self._folder.path} has no root.json; `init` comes first")
        return rules.start(data)

    def _update_root(self) -> None:
        """Root by root to the newest (5.3)."""
        before = self._newest_stored_root()
        for _ in range(self._limits.rotations):
            version = self.trusted.root.version + 1
            if self._follow_stored_root(version):
                continue
            try:
                data = read(self._source, f"{version}.root.json", self._limits.root)
            except Missing:
                break
            new = rules.with_root(self.trusted, data)
            if version > before and rules.revokes(self.trusted.root, new.root):
                # Before the root is stored, so that a power cut between the two cannot leave them behind.
                self._folder.remove(SNAPSHOT)
                self._folder.remove(TIMESTAMP)
            self._folder.write_root(version, data, newest=version >= before)
            self._trusted = new
        if self.trusted.root.version < before:
            raise Refused(
                Reason.METADATA_ROLLBACK,
                f"the repository's root has version {self.trusted.root.version}; {before} was trusted",
            )
        rules.check_root(self.trusted, self._now)

    def _follow_stored_root(self, version: int) -> bool:
        data = self._folder.read_root(version, self._limits.root)
        if data is None:
            return False
        try:
            self._trusted = rules.with_root(self.trusted, data)
        except Refused:
            return False
        return True

    def _newest_stored_root(self) -> int:
        """The version of the folder's `root.json`; 0 where it has none that is whole."""
        data = self._folder.read(ROOT, self._limits.root)
        if data is None:
            return 0
        try:
            return rules.start(data).root.version
        except Refused:
            return 0

    def _update_timestamp(self) -> None:
        """The stored timestamp as the floor, then the newest (5.4)."""
        self._from_folder(TIMESTAMP, lambda data: rules.with_timestamp(self.trusted, data, self._now))
        data = read(self._source, "timestamp.json", self._limits.timestamp)
        new = rules.with_timestamp(self.trusted, data, self._now)
        rules.check_timestamp(new, self._now)
        if new is not self.trusted:
            self._folder.write(TIMESTAMP, data)
            self._trusted = new
        if new.timestamp is not None:
            self._folder.raise_time_floor(issued_ms(new.timestamp))

    def _update_snapshot(self) -> None:
        """The stored snapshot as the floor; if it is not the one that the timestamp names, that one (5.5)."""
        self._from_folder(SNAPSHOT, lambda data: rules.with_snapshot(self.trusted, data, self._now, stored=True))
        with contextlib.suppress(Refused):
            rules.check_snapshot(self.trusted, self._now)
            return
        expected = rules.check_timestamp(self.trusted, self._now).snapshot_meta
        limit = expected.length or self._limits.snapshot
        data = read(self._source, self._name(SNAPSHOT, expected.version), limit)
        new = rules.with_snapshot(self.trusted, data, self._now)
        rules.check_snapshot(new, self._now)
        self._folder.write(SNAPSHOT, data)
        self._trusted = new

    def _load_role(self, role: str, delegator: str) -> Targets:
        """Targets metadata from the folder if that is the right one, else from the repository (5.6)."""
        if (delegator, role) not in self.trusted.roles:
            self._from_folder(role, lambda data: rules.with_role(self.trusted, role, delegator, data, self._now))
        if (delegator, role) not in self.trusted.roles:
            expected = rules.expected_role(self.trusted, role, self._now)
            limit = expected.length or self._limits.targets
            data = read(self._source, self._name(role, expected.version), limit)
            self._trusted = rules.with_role(self.trusted, role, delegator, data, self._now)
            self._folder.write(role, data)
        return self.trusted.roles[delegator, role]

    def _from_folder(self, role: str, take: Callable[[bytes], Trusted]) -> None:
        """What is stored is not trusted for being there; what does not pass is as if it were not."""
        data = self._folder.read(role, self._limits.targets)
        if data is not None:
            with contextlib.suppress(Refused):
                self._trusted = take(data)

    def _name(self, role: str, version: int) -> str:
        """What the repository calls the file (5.3.9, consistent snapshots)."""
        quoted = quote(role, safe="")
        return f"{version}.{quoted}.json" if self.trusted.root.consistent_snapshot else f"{quoted}.json"


def initialise(folder: MetadataFolder, root: bytes, limits: Limits | None = None) -> Root:
    """Begin to trust this root. Raises `Refused` if it is none."""
    if len(root) > (limits or Limits()).root:
        raise Refused(Reason.METADATA_TOO_LARGE, f"a root of {len(root)} bytes")
    trusted = rules.start(root).root
    folder.write_root(trusted.version, root)
    return trusted


def issued_ms(timestamp: Timestamp) -> int:
    """When a timestamp was signed, if it says so; Unix milliseconds, else 0."""
    try:
        issued = datetime.strptime(timestamp.unrecognized_fields.get(ISSUED, ""), "%Y-%m-%dT%H:%M:%S%z")
    except (ValueError, TypeError):
        return 0
    return int(issued.timestamp() * 1000)


def target_place(folder: Path, path: str) -> Path:
    """Where a target's file is kept: flat, its path quoted, so that none leaves the folder."""
    quoted = quote(path, safe="")
    plain = len(quoted) <= 200 and not quoted.startswith(".")
    return folder / (quoted if plain else hashlib.sha256(path.encode()).hexdigest())


def _holds(place: Path, target: TargetFile) -> bool:
    try:
        with place.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    """A file to fill; it takes `place` durably if nothing is raised, and leaves no trace otherwise."""
    temporary = place.with_name(f".{os.getpid()}{durable.TEMPORARY}")
    try:
        durable.make_folder(place.parent)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
        durable.sync_folder(place.parent)
    except OSError as error:
        raise RepositoryError(Reason.STORAGE_ERROR, f"{place} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
