"""Samples as one zip file: `DEVICE/MODEL/TIME-NUMBER.npz`, the classes' names of their models (`_classes/`), and `index.jsonl`, a line for each.

Written as a stream: nothing of it is kept in memory or on disk. A sample that goes meanwhile is left out, and the index, which is last,
does not name it.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any, cast

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from covey_server.db.tables import Sample, Version
from covey_server.errors import NotFound
from covey_server.fleet.bundles import Pieces
from covey_server.registry.blobs import BlobStore

INDEX = "index.jsonl"
MAX_SAMPLES = 10_000
_PIECE = 1 << 20
_LAST_MS = 253_402_300_799_000  # of the year 9999; a device's clock may say anything


def newest(session: Session, limit: int, *which: ColumnElement[bool]) -> list[Sample]:
    """Those that meet all conditions, by the time of the request."""
    query = select(Sample).where(*which).order_by(Sample.time_ms.desc(), Sample.id.desc()).limit(limit)
    return list(session.scalars(query))


def label_files(session: Session, samples: Iterable[Sample]) -> dict[tuple[str, str], str]:
    """By model and version: the SHA-256 of the file of class names that it was pushed with, where it was."""
    models = sorted({one.model for one in samples})
    rows = session.execute(
        select(Version.model, Version.name, Version.labels_blob).where(
            Version.model.in_(models), Version.labels_blob.is_not(None)
        )
    )
    wanted = {(one.model, one.version) for one in samples}
    return {(model, name): blob for model, name, blob in rows if (model, name) in wanted and blob is not None}


def written(
    samples: Iterable[Sample], labels: Mapping[tuple[str, str], str], files: BlobStore, blobs: BlobStore
) -> Iterator[bytes]:
    """The archive's bytes. `files` has the samples, `blobs` the class names."""
    pieces = Pieces()
    named: dict[tuple[str, str], str] = {}
    lines = []
    with zipfile.ZipFile(cast("IO[bytes]", pieces), "w", zipfile.ZIP_STORED) as archive:
        for (model, version), sha256 in sorted(labels.items()):
            with contextlib.suppress(NotFound), blobs.open(sha256) as source:
                named[model, version] = f"_classes/{model}-{version}.txt"
                archive.writestr(zipfile.ZipInfo(named[model, version]), source.read())
        for one in samples:
            member = zipfile.ZipInfo(file_name(one))
            member.file_size = one.size
            try:
                source = files.open(one.sha256)
            except NotFound:
                continue
            with source, archive.open(member, "w") as place:
                while piece := source.read(_PIECE):
                    place.write(piece)
                    yield pieces.take()
            lines.append(json.dumps(line_of(one, named.get((one.model, one.version)))) + "\n")
        archive.writestr(zipfile.ZipInfo(INDEX), "".join(lines))
    yield pieces.take()


def file_name(sample: Sample) -> str:
    return f"{sample.device}/{sample.model}/{sample.name}"


def line_of(sample: Sample, labels: str | None) -> dict[str, Any]:
    """One line of the index. `label` is for whoever looks at the sample."""
    time = datetime.fromtimestamp(sample.time_ms / 1000, UTC).isoformat() if sample.time_ms <= _LAST_MS else None
    return {
        "file": file_name(sample),
        "device": sample.device,
        "model": sample.model,
        "version": sample.version,
        "target": sample.target,
        "build": sample.build,
        "time": time,
        "time_ms": sample.time_ms,
        "request": sample.request,
        "size": sample.size,
        "sha256": sample.sha256,
        "classes": labels,
        "label": None,
    }
