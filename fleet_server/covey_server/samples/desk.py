"""Fetches of samples from devices: asked for by an operator, done by threads of their own, seen in the database.

A device is asked over its own session, as for a diagnosis: which samples it keeps, then for the bytes of each, piece by piece. One that
is here already is not fetched again, so that a fetch that broke off is gone on with by asking once more. Nothing that a device says is
believed: each sample is held to its announced size and digest, and is looked through before it counts.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import BinaryIO, cast

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from covey_contract.errors import DecodeError
from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import (
    MAX_LISTED,
    MAX_SAMPLE_BYTES,
    MAX_SKIPPED,
    ListSamples,
    ReadSample,
    SampleEntry,
    SamplePiece,
    SampleQuestion,
)
from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.db.tables import SampleFetch
from covey_server.errors import ServerError
from covey_server.samples.shelf import NoRoom, SampleShelf

log = logging.getLogger(__name__)

OPEN_STATES = ("waiting", "running")
_DEVICES = 2  # that are asked at the same time
_AT_ONCE = 4  # samples of one device
_TRIES = 3
_LOOK_S = 5.0
_STOP_S = 10.0
_IN_MEMORY = 1 << 20


class FetchError(Exception):
    """The fetch cannot go on; the message is for the operator."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _LeftOut(Exception):
    """This one sample is not to be had, or is not one; the message says why."""


@dataclass(frozen=True)
class _Job:
    id: int
    device: str
    model: str | None
    most: int


class SampleDesk:
    """A few threads between `start` and `stop`. `ask` puts a question to a device and waits for its reply; None: none came in time, or
    `give_up` was called meanwhile."""

    def __init__(
        self,
        database: Database,
        shelf: SampleShelf,
        clock: Clock,
        bus: Bus,
        ask: Callable[[str, SampleQuestion], Reply | None],
        give_up: Callable[[], None],
        max_bytes: int,
    ) -> None:
        self.shelf = shelf
        self._database = database
        self._clock = clock
        self._bus = bus
        self._ask_once = ask
        self._give_up = give_up
        self._max_bytes = max_bytes
        self._wanted = threading.Event()
        self._taking = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """What another process had begun is told to have been broken off. Raises `OSError` if the folder cannot be had."""
        self._stopping.clear()
        self.shelf.prepare()
        with self._database.session() as session:
            values = {
                "state": "failed",
                "reason": Reason.STOPPED.value,
                "detail": "the server was stopped; ask again, and it goes on: what came is here",
                "ended_ms": self._clock(),
            }
            session.execute(update(SampleFetch).where(SampleFetch.state.in_(OPEN_STATES)).values(values))
        for number in range(_DEVICES):
            thread = threading.Thread(target=self._work, name=f"covey-samples-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()
        deadline = time.monotonic() + _STOP_S
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            self._wanted.set()
            self._give_up()
            for thread in self._threads:
                thread.join(0.05)
        self._threads.clear()

    def wake(self) -> None:
        """A fetch was committed."""
        self._wanted.set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._take()
                if job is not None:
                    self._do(job)
                    continue
            except (SQLAlchemyError, ServerError):
                log.exception("samples cannot be fetched just now")
            self._wanted.wait(_LOOK_S)
            self._wanted.clear()

    def _take(self) -> _Job | None:
        waiting = select(SampleFetch).where(SampleFetch.state == "waiting").order_by(SampleFetch.id).limit(1)
        with self._taking:
            with self._database.reading() as session:
                if session.scalar(waiting) is None:
                    return None
            with self._database.session() as session:
                row = session.scalars(waiting).one()
                row.state = "running"
                job = _Job(row.id, row.device, row.model, row.most)
        self._wanted.set()  # for the thread beside this one: there may be more
        return job

    def _do(self, job: _Job) -> None:
        state, reason, detail = "done", Reason.NONE, ""
        try:
            entries, detail = self._entries(job)
            self._note(job, found=len(entries))
            left_out = self._bring_all(job, entries)
            detail = "; ".join(filter(None, (detail, left_out)))
        except FetchError as error:
            state, reason, detail = "failed", error.reason, str(error)
        except NoRoom as error:
            state, reason, detail = "failed", Reason.NO_SPACE, str(error)
        except OSError as error:
            state, reason, detail = "failed", Reason.STORAGE_ERROR, f"the server could not keep it: {error.strerror}"
        except Exception as error:  # the seam of this thread: one fetch must not end all
            log.exception("samples of %s could not be fetched", job.device)
            state, reason, detail = "failed", Reason.INTERNAL, type(error).__name__
        self._note(job, state=state, reason=reason.value, detail=detail[:2000], ended_ms=self._clock())

    def _note(self, job: _Job, **values: object) -> None:
        with self._database.session() as session:
            session.execute(update(SampleFetch).where(SampleFetch.id == job.id).values(values))
        self._bus.publish("device", job.device)

    # --- which ------------------------------------------------------------------------------------------------------

    def _entries(self, job: _Job) -> tuple[list[SampleEntry], str]:
        """The newest that are not here yet, as many as may be brought, and what is to be said of the others. Raises `FetchError`."""
        wanted: dict[tuple[str, str], SampleEntry] = {}
        size, words = 0, ""
        for page in self._pages(job):
            held = self.shelf.held(job.device, page)
            for entry in page:
                key = (entry.model, entry.name)
                if key in held or key in wanted:
                    continue
                if (
                    entry.size > MAX_SAMPLE_BYTES
                ):  # it will be no smaller the next time, and must not stand before the others
                    words = f"left out: samples of more than {MAX_SAMPLE_BYTES} bytes"
                    continue
                if len(wanted) == job.most:
                    return list(wanted.values()), words
                if size + entry.size > self._max_bytes:
                    words = (
                        f"more than {self._max_bytes} bytes (setting sample_fetch_max_bytes); ask again for the others"
                    )
                    return list(wanted.values()), words
                wanted[key] = entry
                size += entry.size
        return list(wanted.values()), words

    def _pages(self, job: _Job) -> Iterator[tuple[SampleEntry, ...]]:
        for skip in range(0, MAX_SKIPPED, MAX_LISTED):
            page = self._ask(job.device, ListSamples(model=job.model, skip=skip)).samples
            if not page:
                return
            yield page[:MAX_LISTED]

    # --- their bytes ------------------------------------------------------------------------------------------------

    def _bring_all(self, job: _Job, entries: list[SampleEntry]) -> str:
        """Several at a time. What is to be said of those that are left out. Raises `FetchError`, `NoRoom`, `OSError`."""
        words = ""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="covey-sample") as pool:
            pending = [pool.submit(self._bring, job, entry) for entry in entries]
            try:
                for one in as_completed(pending):
                    try:
                        one.result()
                    except (_LeftOut, DecodeError) as error:
                        words = f"left out: {error}"
                        self._note(job, left_out=SampleFetch.left_out + 1)
                    else:
                        self._bus.publish("device", job.device)
            finally:
                for one in pending:
                    one.cancel()
        return words

    def _bring(self, job: _Job, entry: SampleEntry) -> None:
        """Raises `_LeftOut` and `DecodeError` for what costs this sample alone; `FetchError`, `NoRoom`, `OSError`."""
        self.shelf.check_room(entry.size)
        digest, announced, offset = hashlib.sha256(), None, 0
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self.shelf.incoming)) as file:
            while offset < entry.size or not offset:
                piece = self._piece(job.device, entry, offset)
                announced = announced or piece.sha256
                if piece.size != entry.size or not piece.data or offset + len(piece.data) > entry.size:
                    raise _LeftOut(f"{entry.name} is not of the size that was announced")
                file.write(piece.data)
                digest.update(piece.data)
                offset += len(piece.data)
            if digest.hexdigest() != announced:
                raise _LeftOut(f"{entry.name} is not what was announced")
            file.seek(0)
            self.shelf.keep(job.id, job.device, entry, cast("BinaryIO", file))

    def _piece(self, device: str, entry: SampleEntry, offset: int) -> SamplePiece:
        piece = self._ask(device, ReadSample(model=entry.model, name=entry.name, offset=offset)).piece
        if piece is None:
            raise _LeftOut(f"{entry.name}: the device answered without bytes")
        return piece

    def _ask(self, device: str, question: SampleQuestion) -> Reply:
        """Its answer, which is one. A reply may be lost: it is asked some times. Raises `FetchError`, `_LeftOut`."""
        for _ in range(_TRIES):
            if self._stopping.is_set():
                raise FetchError(Reason.STOPPED, "the server stops; ask again, and it goes on: what came is here")
            reply = self._ask_once(device, question)
            if reply is None:
                continue
            if reply.reason is Reason.NONE:
                return reply
            if reply.reason in (Reason.NOT_THERE, Reason.STORAGE_ERROR) and isinstance(question, ReadSample):
                raise _LeftOut(f"{question.name}: {reply.detail}")
            if reply.reason is Reason.UNKNOWN_COMMAND:
                raise FetchError(reply.reason, "its agent is too old to be asked for samples")
            raise FetchError(reply.reason, reply.detail)
        raise FetchError(Reason.TIMED_OUT, "it does not answer; ask again, and it goes on: what came is here")
