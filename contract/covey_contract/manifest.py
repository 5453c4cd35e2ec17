"""The manifest of a build: what a device needs to know, check and load, pinned by digests.

A build is named by the SHA-256 of its manifest's exact bytes. The manifest is signed by the release key; nothing that it
does not list is ever loaded. Files are delivered in blocks of `block_size` bytes; the digests of all blocks, 32 bytes
each, in the order of `files`, stand one after the other in the block table, which is a file of its own (index 0 on the
wire; `files[i]` has index i + 1), pinned by `table`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated

import msgspec

from covey_contract.drift import OutputKind, Reference
from covey_contract.errors import DecodeError
from covey_contract.strenum import StrEnum
from covey_contract.wire import Message

BLOCK_BYTES = 64 * 1024
MAX_FILES = 256
MAX_BATCH = 256

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Batch = Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]  # rows along the first axis of every input and output
# Names of models and versions stand in paths, URLs and topics.
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VersionName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Runtime(StrEnum):
    """The inference runtimes; the first part of a target's name."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TFLITE = "tflite"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class DataType(StrEnum):
    """Tensor element types by their names in the Open Inference Protocol."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 1 if self is DataType.BOOL else int(self.value.lstrip("UINTFP")) // 8


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a build. `path` is relative, of plain names, and never leaves the build's folder."""

    path: str
    size: Size
    sha256: Sha256

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", part) for part in parts)
        if not parts or len(parts) > 4 or not plain or "/".join(parts) != self.path:
            raise ValueError(f"file path {self.path!r} is not a plain relative path")


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input or output as callers see it: the source model's name, type and shape, whatever the build made of them.

    `shape` has -1 for a dimension that a request may choose. Where the build's own tensor differs, `build_name` is its
    name there and `permutation` the transposition from the caller's axes to the build's (NCHW to NHWC: (0, 2, 3, 1)).
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    build_name: str | None = None
    permutation: tuple[int, ...] | None = None


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output may lie from the golden one: |a - b| <= absolute + relative * |b|, for each element."""

    absolute: float
    relative: float = 0.0


class Manifest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Everything about one build. Signed as the payload of a DSSE envelope of type `MANIFEST_TYPE`."""

    MAX_BYTES = 64 * 1024

    model: ModelName
    version: VersionName
    target: str  # "openvino-int8", "tensorrt-fp16-sm87"
    runtime: Runtime
    precision: str  # "fp32", "fp16", "int8"
    entry: str  # the path that the runtime is given
    files: tuple[FileEntry, ...]
    table: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    block_size: int = BLOCK_BYTES
    runtime_min: str | None = None  # lowest runtime version that loads this build; None: any
    runtime_exact: str | None = None  # the only one (a TensorRT engine)
    architecture: str | None = None  # None: any
    compute_capability: str | None = None  # "8.7"; None: any
    options: dict[
        str, str | int | float | bool
    ] = {}  # runtime options that are part of the build, e.g. INFERENCE_PRECISION_HINT
    golden: str | None = None  # path of an .npz: arrays "in/NAME" and "out/NAME"
    tolerance: dict[str, Tolerance] = {}  # by output name
    labels: str | None = None  # path of a text file, one label a line
    metadata: dict[str, str] = {}  # for applications: preprocessing and the like
    max_batch: Batch = 1  # rows of several requests that may be computed together, each for itself; 1: no dynamic batch
    memory_mb: float | None = None  # measured peak of the runner on the building machine
    provenance_sha256: Sha256 | None = None
    reference: Reference | None = None  # what its inputs and outputs look like on the evaluation set

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if not paths or len(paths) > MAX_FILES or len(set(paths)) != len(paths):
            raise ValueError(f"a build has 1 to {MAX_FILES} files of different paths")
        for what in (self.entry, self.golden, self.labels):
            if what is not None and what not in paths:
                raise ValueError(f"{what!r} is not among the build's files")
        tensors = (*self.inputs, *self.outputs)
        if self.max_batch > 1 and not all(spec.shape[:1] == (-1,) and _keeps_rows(spec) for spec in tensors):
            raise ValueError("max_batch is for inputs and outputs whose first dimension is open and stays the first")
        if not 4096 <= self.block_size <= BLOCK_BYTES:
            raise ValueError(f"block size {self.block_size} is not between 4096 and {BLOCK_BYTES}")
        blocks = sum(block_count(file.size, self.block_size) for file in self.files)
        if self.table.size != blocks * 32:
            raise ValueError(f"the block table has {self.table.size} bytes; {blocks} blocks need {blocks * 32}")
        if self.reference is not None:
            _check_reference(self.reference, self.inputs, self.outputs)

    @property
    def size(self) -> int:
        """Bytes of all files, without the block table."""
        return sum(file.size for file in self.files)

    def wire_files(self) -> tuple[FileEntry, ...]:
        """The files by their index on the wire: the block table first."""
        return (self.table, *self.files)


def _keeps_rows(spec: TensorSpec) -> bool:
    return spec.permutation is None or spec.permutation[:1] == (0,)


def _check_reference(reference: Reference, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    ranks = {spec.name: len(spec.shape) for spec in outputs}
    if strange := [*(reference.outputs.keys() - ranks), *(reference.inputs.keys() - {spec.name for spec in inputs})]:
        raise ValueError(f"the reference is of {strange[0]!r}, which the build does not have")
    for name, output in reference.outputs.items():
        if output.kind is not OutputKind.VALUES and not ranks[name]:
            raise ValueError(f"the reference has class scores of {name!r}, which is a single number")


MANIFEST_TYPE = "application/vnd.covey.manifest.v1+json"


def block_count(size: int, block_size: int = BLOCK_BYTES) -> int:
    return -(-size // block_size)


def build_digest(manifest_bytes: bytes) -> str:
    """The name of a build: SHA-256 in hex over the exact bytes of its manifest."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def check_target(target: str) -> tuple[Runtime, str]:
    """Runtime and precision of a target's name; raises `DecodeError` if it is not one.

    >>> check_target("tensorrt-fp16-sm87")
    (<Runtime.TENSORRT: 'tensorrt'>, 'fp16')
    """
    match = re.fullmatch(r"(onnxruntime|openvino|tflite|tensorrt-rtx|tensorrt)-(fp32|fp16|int8)(-sm\d{2,3})?", target)
    if match is None:
        raise DecodeError(f"{target!r} is not a target: RUNTIME-PRECISION, e.g. openvino-int8 or tensorrt-fp16-sm87")
    return Runtime(match[1]), match[2]
