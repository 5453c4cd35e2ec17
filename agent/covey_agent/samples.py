"""Samples that the gateway has kept, for the server that asks for them: which there are, and each one's bytes, piece by piece.

They leave the device only if its own settings say so twice: that samples are kept, and that they may be sent. Nothing is written
here; a sample that goes meanwhile, to make room for a newer one, is said to be gone.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_contract.manifest import MODEL_NAME
from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import (
    MAX_SAMPLE_BYTES,
    PIECE_BYTES,
    ListSamples,
    ReadSample,
    SampleEntry,
    SamplePiece,
    SampleQuestion,
)

log = logging.getLogger(__name__)

# So many digits as a name on the wire may have.
_NAME = re.compile(r"([0-9]{1,16})-([0-9]{1,12})\.npz")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Samples:
    """`folder`: where the gateway keeps them. `kept` and `may_leave`: what the device's settings say."""

    folder: Path
    kept: bool
    may_leave: bool

    def answer(self, reply: Reply, question: SampleQuestion | None) -> Reply:
        """The reply with the answer in it, or with the reason why there is none."""
        if not self.kept:
            detail = "this device keeps no samples: it runs without --capture-share"
            return msgspec.structs.replace(reply, reason=Reason.NOT_ALLOWED, detail=detail)
        if not self.may_leave:
            detail = "this device's settings do not let samples leave it: it runs without --capture-send"
            return msgspec.structs.replace(reply, reason=Reason.NOT_ALLOWED, detail=detail)
        try:
            if isinstance(question, ListSamples):
                return msgspec.structs.replace(reply, samples=self._listed(question))
            if isinstance(question, ReadSample):
                return msgspec.structs.replace(reply, piece=self._piece(question))
        except FileNotFoundError:
            return msgspec.structs.replace(reply, reason=Reason.NOT_THERE, detail="it made room for newer ones")
        except OSError as error:
            log.warning("a sample cannot be read: %s", error)
            detail = f"it cannot be read: {error.strerror or error}"
            return msgspec.structs.replace(reply, reason=Reason.STORAGE_ERROR, detail=detail[:2000])
        return msgspec.structs.replace(reply, reason=Reason.UNKNOWN_COMMAND, detail="nothing was asked about samples")

    def _listed(self, question: ListSamples) -> tuple[SampleEntry, ...]:
        """Raises `OSError`."""
        # Of a folder with very many no more is held than may be asked for.
        newest = heapq.nlargest(question.skip + question.limit, self._found(question.model))
        entries = []
        for _, _, model, name in newest[question.skip :]:
            try:
                told = (self.folder / model / name).lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(told.st_mode):
                entries.append(SampleEntry(model=model, name=name, size=told.st_size))
        return tuple(entries)

    def _found(self, model: str | None) -> Iterator[tuple[int, int, str, str]]:
        """Time, number, model and name of each."""
        try:
            folders = [model] if model is not None else [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return  # nothing was kept yet
        for folder in folders:
            if not MODEL_NAME.fullmatch(folder):
                continue
            try:
                with os.scandir(self.folder / folder) as entries:
                    for entry in entries:
                        if match := _NAME.fullmatch(entry.name):
                            yield int(match[1]), int(match[2]), folder, entry.name
            except (FileNotFoundError, NotADirectoryError):
                continue

    def _piece(self, question: ReadSample) -> SamplePiece:
        """Raises `OSError`."""
        # The contract lets neither name lead out of the folder; a link within it is not followed.
        descriptor = os.open(self.folder / question.model / question.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor has no path
            size = os.fstat(descriptor).st_size
            if size > MAX_SAMPLE_BYTES:
                return SamplePiece(size=size, data=b"")
            digest = None
            if not question.offset:
                made = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    made.update(chunk)
                digest = made.hexdigest()
            file.seek(question.offset)
            return SamplePiece(size=size, data=file.read(PIECE_BYTES), sha256=digest)
