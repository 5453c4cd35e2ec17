"""Writing bundles (`covey_contract.bundle`): orders, metadata and files, for devices that have no network.

Written as a stream, piece by piece: nothing of it is kept in memory or on disk.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, cast

from covey_contract.bundle import blob_name, metadata_name, order_name
from covey_server.registry.blobs import BlobStore

_PIECE = 1 << 20


@dataclass(frozen=True)
class SignedOrder:
    """`payload` as it travels to the device; `build` is the digest of the build that it names."""

    device: str
    model: str
    build: str
    payload: bytes


class Pieces:
    """A file that is only written, and taken away as it grows."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._held.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        held, self._held = self._held, []
        return b"".join(held)


def written(
    orders: Iterable[SignedOrder], metadata: Mapping[str, bytes], files: Iterable[str], blobs: BlobStore
) -> Iterator[bytes]:
    """The bundle's bytes. `files`: SHA-256 in hex. Raises `NotFound` for a blob that is gone."""
    pieces = Pieces()
    with zipfile.ZipFile(cast("IO[bytes]", pieces), "w", zipfile.ZIP_STORED) as archive:
        for order in orders:
            archive.writestr(zipfile.ZipInfo(order_name(order.device, order.model)), order.payload)
        for name, data in metadata.items():
            archive.writestr(zipfile.ZipInfo(metadata_name(name)), data)
        yield pieces.take()
        for sha256 in files:
            member = zipfile.ZipInfo(blob_name(sha256))
            member.file_size = blobs.size(sha256)
            with blobs.open(sha256) as source, archive.open(member, "w") as place:
                while piece := source.read(_PIECE):
                    place.write(piece)
                    yield pieces.take()
    yield pieces.take()
