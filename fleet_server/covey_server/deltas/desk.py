"""Which deltas there are, and who makes those that are wanted: one after the other, in a child process at the lowest priority.

A pair is wanted when a build is made whose predecessors run somewhere, and when an order goes to a device for which there is none. Orders
never wait: a device that is ordered before the delta is there fetches blocks. Invariant: what `between` offers lies in the blob store
and is smaller than the blocks that it stands for.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from covey_contract.delta import read_segments
from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, FileEntry, Manifest, Sha256, Size
from covey_contract.messages import DeltaOffer
from covey_contract.wire import decode
from covey_server.db.engine import Database
from covey_server.db.tables import Build, Reported, Version
from covey_server.errors import ServerError
from covey_server.fleet.durable import write_durably
from covey_server.registry.blobs import BlobStore

log = logging.getLogger(__name__)

_LOOK_S = 5.0
_PREDECESSORS = 4  # of a new build: those that most devices run
_QUEUE = 256
_SECONDS_PER_MB = 5.0  # a pair takes well below one
_LEAST_S = 60.0
_MOST_BYTES = 4 << 30


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a pair of builds; without `sha256` no delta is worth while. `saves`: bytes of the blocks that it gives, about."""

    old: Sha256
    new: Sha256
    saves: Size = 0
    sha256: Sha256 | None = None
    size: Size = 0


@dataclass(frozen=True)
class _Pair:
    old: str
    new: str


class Deltas:
    """`start` and `stop` once each; the rest from any thread, and none of it waits."""

    def __init__(self, database: Database, blobs: BlobStore, folder: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._folder = folder
        self._made: dict[_Pair, Made] = {}
        self._by_digest: dict[str, Made] = {}
        self._wanted: queue.Queue[_Pair | None] = queue.Queue(_QUEUE)
        self._queued: set[_Pair] = set()
        self._seen: dict[tuple[str, str], int] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises `OSError`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.suffix == ".json":
                self._load(path)
            else:
                path.unlink()  # half-made
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="covey-deltas", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._wanted.put_nowait(None)
        child = self._child
        if child is not None:
            child.terminate()
        if self._thread is not None:
            self._thread.join(10.0)

    def between(self, old: str, new: str) -> DeltaOffer | None:
        """The delta from one build to another, by their digests; if there is none yet, it is made for those who come later."""
        if old == new:
            return None
        pair = _Pair(old, new)
        made = self._made.get(pair)
        if made is None:
            self._want(pair)
            return None
        return None if made.sha256 is None else DeltaOffer(base=old, sha256=made.sha256, size=made.size)

    def settled(self, old: str, new: str) -> bool:
        """Whether it is known if there is a delta."""
        return _Pair(old, new) in self._made

    def of(self, sha256: str) -> Made | None:
        """The delta with that digest."""
        return self._by_digest.get(sha256)

    def look(self) -> None:
        """Want the deltas to builds that are new, from those that devices run."""
        with self._database.reading() as session:
            newest = session.execute(
                select(Version.model, Build.target, func.max(Build.id))
                .join(Version, Version.id == Build.version_id)
                .where(Build.state == "built")
                .group_by(Version.model, Build.target)
            ).all()
            for model, target, build in newest:
                if self._seen.get((model, target)) == build:
                    continue
                self._seen[model, target] = build
                new = session.scalar(select(Build.digest).where(Build.id == build))
                query = (
                    select(Reported.active)
                    .join(Build, Build.digest == Reported.active)
                    .where(Reported.model == model, Build.target == target, Build.id != build)
                    .group_by(Reported.active)
                    .order_by(func.count().desc())
                    .limit(_PREDECESSORS)
                )
                for old in session.scalars(query):
                    if new is not None and old is not None:
                        self._want(_Pair(old, new))

    def _want(self, pair: _Pair) -> None:
        if pair not in self._queued and pair not in self._made:
            with contextlib.suppress(queue.Full):  # it is wanted again by the next order
                self._wanted.put_nowait(pair)
                self._queued.add(pair)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
                pair = self._wanted.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            except SQLAlchemyError as error:
                log.error("no builds can be looked for: %s", error)
                self._stopping.wait(_LOOK_S)
                continue
            if pair is None:
                continue
            try:
                self._make(pair)
            except (OSError, SQLAlchemyError, ServerError, DecodeError) as error:
                log.error("the delta from build %s to %s cannot be made: %s", pair.old[:12], pair.new[:12], error)
            finally:
                self._queued.discard(pair)

    def _make(self, pair: _Pair) -> None:
        if pair in self._made:
            return
        with self._database.reading() as session:
            rows = session.execute(select(Build.digest, Build.manifest).where(Build.digest.in_([pair.old, pair.new])))
            manifests = {digest: manifest for digest, manifest in rows if manifest is not None}
        if len(manifests) < 2:
            return
        old, new = (decode(Manifest, manifests[digest]) for digest in (pair.old, pair.new))
        made = Made(pair.old, pair.new)
        if (old.model, old.target) == (new.model, new.target) and old.block_size == new.block_size == BLOCK_BYTES:
            out = self._folder / f"{pair.new}-{pair.old}.part"
            try:
                if not self._run_child([manifests[pair.old], manifests[pair.new]], out, new.size):
                    self._note(made)  # not again before the next start
                    return
                made = self._taken(made, out)
            finally:
                out.unlink(missing_ok=True)
        write_durably(self._folder / f"{pair.new}-{pair.old}.json", msgspec.json.encode(made))
        self._note(made)
        log.info("delta from build %s to %s: %d bytes for %d", pair.old[:12], pair.new[:12], made.size, made.saves)

    def _taken(self, made: Made, out: Path) -> Made:
        """The delta in the store, if it gives any blocks: each of its segments is smaller than those it gives."""
        with out.open("rb") as file:
            saves = sum(segment.blocks * BLOCK_BYTES for segment in read_segments(file))
            if not saves:
                return made
            file.seek(0)
            sha256, size = self._blobs.put(file, _MOST_BYTES)
        return Made(made.old, made.new, saves, sha256, size)

    def _run_child(self, manifests: Sequence[bytes], out: Path, size: int) -> bool:
        """Whether the delta is made. Raises `OSError`."""
        names = [out.with_name(f"{name}.manifest") for name in ("old", "new")]
        for path, data in zip(names, manifests, strict=True):
            path.write_bytes(data)
        words = [sys.executable, "-m", "covey_server.deltas.making", self._blobs.folder, *names, out]
        limit_s = _LEAST_S + size / 1e6 * _SECONDS_PER_MB
        self._child = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL)
        try:
            code = self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        finally:
            self._child = None
            for path in names:
                path.unlink(missing_ok=True)
        if code and not self._stopping.is_set():
            log.error("the process that makes a delta ended with %d", code)
        return code == 0

    def _load(self, path: Path) -> None:
        try:
            made = msgspec.json.decode(path.read_bytes(), type=Made)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s is made anew: %s", path.name, error)
            return
        if made.sha256 is None or self._blobs.has(made.sha256):
            self._note(made)

    def _note(self, made: Made) -> None:
        self._made[_Pair(made.old, made.new)] = made
        if made.sha256 is not None:
            self._by_digest[made.sha256] = made


def entry_of(made: Made) -> FileEntry:
    """A delta as the one file of a build of its own."""
    return FileEntry(path="delta", size=made.size, sha256=made.sha256 or "")
