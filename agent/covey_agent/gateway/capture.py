"""Samples of what was asked and answered, on disk, for labelling later. Off unless somebody turns it on: inputs may be pictures of people.

Each sample is one `.npz` file (`MODEL/TIME-NUMBER.npz`, arrays `in/NAME` and `out/NAME` as golden vectors have them, and `about.json`), so
that `numpy.load` reads it. Invariants: never more bytes than were allowed, the oldest go first; never the disk's last free bytes; no
request waits for the disk, what cannot be written in time is not kept. Samples are no state: a power cut may take the newest.

Source of the format: NumPy's `numpy.lib.format`, version 1.0, within a zip file.
"""

from __future__ import annotations

import logging
import os
import queue
import struct
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.runner_process import BuildSpec, Reply
from covey_agent.gateway.settings import Sampling
from covey_agent.runner.protocol import Buffer, TensorInfo, split_payload
from covey_contract.messages import Captured

log = logging.getLogger(__name__)

FREE_BYTES = 64_000_000  # of the disk, left alone
_WAITING = 4  # samples on their way to the disk
_LEAST_S = 0.1  # between two samples, whatever the share
_PAUSE_S = 60.0  # after the disk has refused one
_TEMPORARY = ".part"
_NPY_CODES = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "INT8": "|i1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


@dataclass(frozen=True)
class _Sample:
    model: str
    about: bytes
    tensors: list[tuple[str, TensorInfo, Buffer]]
    time_ms: int

    @property
    def size(self) -> int:
        return sum(info.size for _, info, _ in self.tensors)


@dataclass
class Capture:
    """`start` once; `offer` from the event loop. `draw` gives a number in [0, 1), `clock` monotonic seconds."""

    settings: Sampling
    draw: Callable[[], float]
    clock: Callable[[], float]
    now_ms: Callable[[], int]
    kept: int = 0
    dropped: int = 0  # chosen, and not written: the disk was too slow, too full, or the sample too large
    _queue: queue.Queue[_Sample | None] = field(default_factory=lambda: queue.Queue(_WAITING))
    _files: deque[tuple[Path, int]] = field(default_factory=deque)  # the oldest first
    _bytes: int = 0
    _not_before: float = 0.0
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises `OSError` if the folder cannot be had."""
        self.settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.settings.folder.rglob(f"*{_TEMPORARY}"):
            path.unlink(missing_ok=True)
        found = sorted((path.stat().st_mtime_ns, path) for path in self.settings.folder.rglob("*.npz"))
        self._files.extend((path, path.stat().st_size) for _, path in found)
        self._bytes = sum(size for _, size in self._files)
        self._make_room(0)
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What waits is written first."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(5.0)

    def told(self) -> Captured:
        """As telemetry has it."""
        return Captured(
            share=self.settings.share,
            limit_mb=self.settings.limit_bytes / 1e6,
            samples=len(self._files),
            held_mb=self._bytes / 1e6,
            dropped=self.dropped,
        )

    def offer(self, spec: BuildSpec, request: InferRequest, reply: Reply) -> None:
        """Keep it, if it is one of those. Waits for nothing, and copies only what it keeps."""
        if self.draw() >= self.settings.share:
            return
        now = self.clock()
        if now < self._not_before:
            return
        self._not_before = now + _LEAST_S
        manifest, time_ms = spec.manifest, self.now_ms()
        about = {
            "model": manifest.model,
            "version": manifest.version,
            "target": manifest.target,
            "build": spec.build,
            "time_ms": time_ms,
            "id": request.id[:256],
        }
        outputs = reply.result.outputs
        answers = zip(outputs, split_payload(outputs, reply.payload), strict=True)
        tensors: list[tuple[str, TensorInfo, Buffer]] = [
            *(("in", info, bytes(data)) for info, data in zip(request.inputs, request.data, strict=True)),
            *(("out", info, data) for info, data in answers),
        ]
        try:
            self._queue.put_nowait(_Sample(manifest.model, msgspec.json.encode(about), tensors, time_ms))
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        while (sample := self._queue.get()) is not None:
            try:
                self._write(sample)
            except OSError as error:
                self.dropped += 1
                self._not_before = self.clock() + _PAUSE_S
                log.warning("a sample is not kept: %s", error)

    def _write(self, sample: _Sample) -> None:
        """Raises `OSError`."""
        told = os.statvfs(self.settings.folder)
        if sample.size > self.settings.limit_bytes // 4 or told.f_bavail * told.f_frsize < FREE_BYTES + sample.size:
            self.dropped += 1
            return
        folder = self.settings.folder / sample.model
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{sample.time_ms}-{self.kept:06d}.npz"
        part = path.with_suffix(_TEMPORARY)
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("about.json", sample.about)
                for side, info, data in sample.tensors:
                    with archive.open(f"{side}/{info.name}.npy", "w") as file:
                        file.write(npy_header(info))
                        file.write(data)
            size = part.stat().st_size
            self._make_room(size)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._files.append((path, size))
        self._bytes += size
        self.kept += 1

    def _make_room(self, size: int) -> None:
        while self._files and self._bytes + size > self.settings.limit_bytes:
            path, gone = self._files.popleft()
            path.unlink(missing_ok=True)
            self._bytes -= gone


def npy_header(info: TensorInfo) -> bytes:
    """What stands before the elements in a `.npy` file.

    >>> npy_header(TensorInfo("x", "FP32", (1, 2), 8))[10:67]
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}"
    """
    told = f"{{'descr': '{_NPY_CODES[info.datatype]}', 'fortran_order': False, 'shape': {info.shape!r}}}".encode()
    told += b" " * (-(len(told) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told


def started(settings: Sampling | None, draw: Callable[[], float], now_ms: Callable[[], int]) -> Capture | None:
    """None where it is off, or where its folder cannot be had: serving goes on without."""
    if settings is None:
        return None
    made = Capture(settings, draw, time.monotonic, now_ms)
    try:
        made.start()
    except OSError as error:
        log.error("nothing is captured: %s", error)
        return None
    log.info("%.3g of the requests are kept in %s, with their answers", settings.share, settings.folder)
    return made
