"""A build of random bytes, signed by nobody, in a blob store and a database that gives every device the right to it."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
from sqlalchemy import insert

from covey_contract.facts import Facts
from covey_contract.manifest import (
    BLOCK_BYTES,
    DataType,
    FileEntry,
    Manifest,
    Runtime,
    TensorSpec,
    build_digest,
)
from covey_contract.wire import encode
from covey_hil.testing.rows import add_build, add_version
from covey_server.db.engine import Database
from covey_server.db.tables import Device
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.fleet.sql import table_of
from covey_server.registry.blobs import BlobStore

MODEL = "digits"


@dataclass(frozen=True)
class Made:
    """`contents[i]` is the file with index i on the wire."""

    digest: str
    manifest: Manifest
    contents: tuple[bytes, bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.contents))


def name_of(device: int) -> str:
    return f"d-{device:04}"


def make(folder: Path, database_url: str, size: int, devices: int) -> Made:
    """One file of so many bytes, and its block table; an order to run it for each device."""
    data = Random(size).randbytes(size)
    blocks = range(0, size, BLOCK_BYTES)
    table = b"".join(hashlib.sha256(data[at : at + BLOCK_BYTES]).digest() for at in blocks)
    blobs = BlobStore(folder / "blobs")
    entries = []
    for path, content in (("blocks.bin", table), ("model.onnx", data)):
        sha256, length = blobs.put(io.BytesIO(content), size + 1)
        entries.append(FileEntry(path=path, size=length, sha256=sha256))
    tensor = (TensorSpec(name="x", datatype=DataType.FP32, shape=(1,)),)
    manifest = Manifest(
        model=MODEL,
        version="1.0",
        target="onnxruntime-fp32",
        runtime=Runtime.ONNXRUNTIME,
        precision="fp32",
        entry="model.onnx",
        files=(entries[1],),
        table=entries[0],
        inputs=tensor,
        outputs=tensor,
    )
    manifest_bytes = encode(manifest)
    (folder / "manifest.json").write_bytes(manifest_bytes)
    digest = build_digest(manifest_bytes)
    _enter(database_url, manifest_bytes, digest, devices)
    return Made(digest, manifest, (table, data))


def _enter(database_url: str, manifest: bytes, digest: str, devices: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    database = Database(database_url)
    database.migrate()
    facts = Facts(architecture="x86_64", simulated=True)
    row = {
        "profile": None,
        "profile_reason": "none is needed",
        "simulated": True,
        "facts": msgspec.to_builtins(facts),
        "facts_digest": facts.digest(),
        "labels": {},
        "enrolled_ms": now_ms,
    }
    try:
        with database.session() as session:
            session.execute(insert(table_of(Device)), [{"id": name_of(number), **row} for number in range(devices)])
            version = add_version(session, "1.0", now_ms=now_ms)
            build = add_build(session, version, digest, manifest=manifest)
            orders = [NewOrder(name_of(n), MODEL, version.id, build.id, "manual") for n in range(devices)]
            issue(session, orders, now_ms)
    finally:
        database.close()
