"""Samples as a gateway keeps them, made without one."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

from covey_agent.gateway.capture import npy_header
from covey_agent.runner.protocol import TensorInfo

BUILD = "b" * 64
TIME_MS = 1_790_000_000_000


def about(model: str = "digits", version: str = "1.0", time_ms: int = TIME_MS, **changes: object) -> bytes:
    told = {
        "model": model,
        "version": version,
        "target": "onnxruntime-int8",
        "build": BUILD,
        "time_ms": time_ms,
        "id": "r1",
    }
    return json.dumps({**told, **changes}).encode()


def array(count: int = 4, fill: float = 0.5) -> bytes:
    """A row of `count` numbers, as an `.npy` file."""
    return npy_header(TensorInfo("x", "FP32", (1, count), 4 * count)) + struct.pack("<f", fill) * count


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same bytes at any time of day."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return held.getvalue()


def sample(model: str = "digits", version: str = "1.0", time_ms: int = TIME_MS, count: int = 4) -> bytes:
    members = {"about.json": about(model, version, time_ms), "in/x.npy": array(count), "out/y.npy": array(2)}
    return zipped(members)


def keep(folder: Path, number: int, model: str = "digits", data: bytes | None = None, count: int = 4) -> Path:
    """Put one where a gateway keeps it; a higher number is a newer one."""
    time_ms = TIME_MS + number * 1000
    path = folder / model / f"{time_ms}-{number:06d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample(model, time_ms=time_ms, count=count) if data is None else data)
    return path
