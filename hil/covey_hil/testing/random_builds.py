"""Builds made of random bytes, and a server of blocks that is a function."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

from covey_agent.fetch import Fetcher, FetchLimits
from covey_agent.store import Store
from covey_contract.blocks import Block, blocks_of
from covey_contract.manifest import DataType, FileEntry, Manifest, Runtime, TensorSpec, build_digest
from covey_contract.messages import BlockRequest
from covey_contract.wire import encode

BLOCK = 4096


class RandomBuild:
    """`contents[i]` is the file with index i on the wire."""

    def __init__(self, sizes: tuple[int, ...], seed: int = 0, version: str = "1", **changes: Any) -> None:
        draw = Random(seed)
        self._make([draw.randbytes(size) for size in sizes], version, changes)

    @classmethod
    def of(cls, files: list[bytes], version: str = "1", block: int = BLOCK) -> RandomBuild:
        """Of these files."""
        made = cls.__new__(cls)
        made._make(files, version, {}, block)
        return made

    def _make(self, files: list[bytes], version: str, changes: dict[str, Any], block: int = BLOCK) -> None:
        self.block = block
        table = b"".join(
            hashlib.sha256(data[at : at + block]).digest() for data in files for at in range(0, len(data), block)
        )
        self.contents = [table, *files]
        tensor = (TensorSpec(name="x", datatype=DataType.FP32, shape=(1,)),)
        self.manifest = Manifest(
            model="m",
            version=version,
            target="onnxruntime-fp32",
            runtime=Runtime.ONNXRUNTIME,
            precision="fp32",
            entry="f0.bin",
            files=tuple(self._entry(f"f{n}.bin", data) for n, data in enumerate(files)),
            table=self._entry("blocks.bin", table),
            inputs=tensor,
            outputs=tensor,
            block_size=block,
            **changes,
        )
        self.manifest_bytes = encode(self.manifest)
        self.digest = build_digest(self.manifest_bytes)

    @staticmethod
    def _entry(path: str, data: bytes) -> FileEntry:
        return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def answers(self, request: BlockRequest) -> list[Block]:
        content = self.contents[request.file]
        prefix = bytes.fromhex(self.digest[:16])
        return [
            Block(prefix, request.file, index, content[index * self.block : (index + 1) * self.block])
            for index in blocks_of(request.base, request.bitmap)
        ]

    def fetcher(self, folder: Path, store: Store, **limits: Any) -> Fetcher:
        return Fetcher(self.digest, self.manifest, folder / self.digest, store, FetchLimits(**limits))
