"""What gateway and runner say to each other: frames on a Unix stream socket.

A frame is `u32 header bytes · u64 payload bytes` (little-endian), the header (a `ToRunner` or `FromRunner` message in
MessagePack) and the payload: raw tensors one after the other, C order, little-endian, in the order of the header's
`TensorInfo`s; larger inputs lie in memory that both share (`arena`). The runner answers one frame at a time, in order; either side ends the talk by closing the socket.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from covey_contract.reasons import Reason
from covey_contract.strenum import StrEnum

PREFIX = struct.Struct("<IQ")
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 30

Buffer = bytes | bytearray | memoryview


class FrameError(Exception):
    """The other end of the runner's socket sent something that is no frame."""


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the payload: `size` bytes of `shape` elements of `datatype` (its name in the Open Inference Protocol)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class Start(msgspec.Struct, frozen=True, tag=True):
    """Load the build -> `Ready` or `Failed`. `background`: at idle priority, beside a build that serves."""

    background: bool
    check_golden: bool
    threads: int


class Infer(msgspec.Struct, frozen=True, tag=True):
    """Run the build on the tensors of the payload -> `Result` or `Error` of the same id."""

    id: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]  # callers' names, in the order wanted
    shared: bool = False  # the tensors lie in the arena, not in the payload


class Ready(msgspec.Struct, frozen=True, tag=True):
    load_ms: float
    first_ms: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The build cannot be loaded; the runner ends."""

    reason: Reason
    detail: str


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """What one output looked like, by the rules of `covey_contract.drift`: for each counted row its class and the bin of its score, or
    for each bin of values how many elements lie in it."""

    classes: list[int] = []
    scores: list[int] = []
    values: list[int] = []


class InputFlag(enum.IntFlag):
    """What may be wrong with one input."""

    NAN = 1
    CONSTANT = 2
    OUT_OF_RANGE = 4


class Result(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """`compute_s`: seconds from tensors in to tensors out, transpositions included. `outputs_seen` and `inputs_seen` (`InputFlag`s) are
    in the order of the manifest's reference."""

    id: int
    compute_s: float
    outputs: tuple[TensorInfo, ...]
    outputs_seen: tuple[Seen, ...] = ()
    inputs_seen: tuple[int, ...] = ()


class ErrorKind(StrEnum):
    """FAILED: the runtime raised. BAD_OUTPUT: it answered with NaN, or with another shape or type than the manifest says."""

    FAILED = "inference_error"
    BAD_OUTPUT = "bad_output"


class Error(msgspec.Struct, frozen=True, tag=True):
    id: int
    kind: ErrorKind
    detail: str


ToRunner = Start | Infer
FromRunner = Ready | Failed | Result | Error
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
to_runner: msgspec.msgpack.Decoder[ToRunner] = msgspec.msgpack.Decoder(ToRunner)
from_runner: msgspec.msgpack.Decoder[FromRunner] = msgspec.msgpack.Decoder(FromRunner)


def encode_frame(message: ToRunner | FromRunner, tensors: Sequence[Buffer] = ()) -> bytes:
    """`tensors`: contiguous, of any shape and type of elements."""
    header = _encoder.encode(message)
    payload = sum([memoryview(tensor).nbytes for tensor in tensors])
    return b"".join((PREFIX.pack(len(header), payload), header, *tensors))


class SharedInfer:
    """Frames of requests that differ in their ids and in what lies in the arena: all but the id is encoded once."""

    _ID = (1 << 64) - 1  # as long in MessagePack as an id can be

    def __init__(self, inputs: tuple[TensorInfo, ...], outputs: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        frame = encode_frame(Infer(self._ID, inputs, outputs, shared=True))
        self._start, self._end = frame.split(self._ID.to_bytes(8, "big"), 1)

    def numbered(self, number: int) -> bytes:
        return b"%b%b%b" % (self._start, number.to_bytes(8, "big"), self._end)


def decode_prefix(prefix: Buffer) -> tuple[int, int]:
    """Bytes of header and payload; raises `FrameError` beyond the limits."""
    header, payload = PREFIX.unpack(prefix)
    if header > MAX_HEADER_BYTES or payload > MAX_PAYLOAD_BYTES:
        raise FrameError(f"frame of {header} + {payload} bytes; at most {MAX_HEADER_BYTES} + {MAX_PAYLOAD_BYTES}")
    return header, payload


def decode_header(decoder: msgspec.msgpack.Decoder[T], header: Buffer) -> T:
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"frame header: {error}") from error


def split_payload(tensors: Sequence[TensorInfo], payload: Buffer) -> list[memoryview]:
    """The payload cut into its tensors, without copying; raises `FrameError` if the sizes do not add up."""
    if sum([tensor.size for tensor in tensors]) != len(payload):
        raise FrameError(f"the tensors' sizes do not add up to the payload of {len(payload)} bytes")
    view, parts, offset = memoryview(payload), [], 0
    for tensor in tensors:
        parts.append(view[offset : offset + tensor.size])
        offset += tensor.size
    return parts


class FrameBuffer(Generic[T]):
    """Frames out of a stream that arrives in pieces of any size."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._data = bytearray()

    def feed(self, data: Buffer) -> Iterable[tuple[T, bytes]]:
        """Each frame that is now complete as (message, payload); raises `FrameError`. What was read in one piece, as most are, is copied
        no more often than need be."""
        if not self._data and len(data) >= PREFIX.size:
            header, payload = PREFIX.unpack_from(data)
            body = PREFIX.size + header
            if body + payload == len(data) <= MAX_HEADER_BYTES:
                return ((decode_header(self._decoder, data[PREFIX.size : body]), bytes(data[body:])),)
        return self._cut(data)

    def _cut(self, data: Buffer) -> Iterator[tuple[T, bytes]]:
        self._data += data
        while len(self._data) >= PREFIX.size:
            header, payload = decode_prefix(self._data[: PREFIX.size])
            body, end = PREFIX.size + header, PREFIX.size + header + payload
            if len(self._data) < end:
                return
            message = decode_header(self._decoder, self._data[PREFIX.size : body])
            content = bytes(memoryview(self._data)[body:end])
            del self._data[:end]
            yield message, content
