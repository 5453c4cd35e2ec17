"""What server and devices say to each other, as either side decodes it."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_contract import blocks, metric, sources, topics
from covey_contract.conditions import Conditions, opening
from covey_contract.delta import MAGIC, Segment, encode_segment, read_segments
from covey_contract.enrolment import parse_claim_token
from covey_contract.envelope import decode_envelope, encode_envelope
from covey_contract.errors import ContractError
from covey_contract.histogram import Histogram, merge
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment
from covey_contract.metadata import pack_metadata, unpack_metadata
from covey_contract.samples import read_sample
from covey_contract.signing import open_envelope, public_key, seal
from covey_contract.wire import Message, decode, encode
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders.messages import CONDITIONS, FROM_BUILDERS, FROM_DEVICES, HISTOGRAM, MESSAGES

_REFUSES = (ContractError,)
# What msgspec raises, where nothing stands in front of it but this file.
_NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_WIRE = "covey_contract.wire"


def _sender(kind: str) -> str:
    if kind in FROM_DEVICES:
        return "a device"
    return "a builder" if kind in FROM_BUILDERS else "the server"


def _message(message: Message, _: Path) -> Made:
    kind = type(message)

    def read(data: bytes) -> object:
        """What was taken must say the same when it is said again."""
        found = decode(kind, data)
        assert decode(kind, msgspec.json.encode(found)[: kind.MAX_BYTES + 1]) == found or _is_long(found)
        return found

    return Made(read, (encode(message), b'{"v":2}'))


def _is_long(message: Message) -> bool:
    return len(msgspec.json.encode(message)) > message.MAX_BYTES


def _histogram(_: Path) -> Made:
    """As telemetry has it, with what gates and charts ask of it."""
    decoder = msgspec.json.Decoder(Histogram)

    def read(data: bytes) -> object:
        found = decoder.decode(data)
        quantile = found.quantile(0.99)
        assert found.count == 0 or found.min <= quantile <= max(found.max, found.min)
        found.count_above(0.01)
        together = merge([found, HISTOGRAM])
        assert together.count == found.count + HISTOGRAM.count
        return found

    wide = Histogram(scale=-10, count=2, sum=1.0, max=1.0, offset=-(1 << 30), counts=(1, 1))
    return Made(read, (msgspec.json.encode(HISTOGRAM), msgspec.json.encode(wide)))


def _conditions(_: Path) -> Made:
    decoder, zone = msgspec.json.Decoder(Conditions), ZoneInfo("Europe/Berlin")
    return Made(
        lambda data: opening(decoder.decode(data).windows, 1_774_000_000_000, zone), (msgspec.json.encode(CONDITIONS),)
    )


def _blocks(_: Path) -> Made:
    def read(data: bytes) -> object:
        found = blocks.decode_block(data)
        assert blocks.frame_of(found) == data
        return found

    return Made(
        read, (blocks.encode_block("ab" * 32, 1, 7, b"bytes"), blocks.encode_block("00" * 32, 0, 0, b"x" * 300))
    )


def _delta(_: Path) -> Made:
    segments = [Segment(1, first, 2, "c" * 64, 0, 500, 0, 0) for first in (0, 8)]
    whole = MAGIC + b"".join(encode_segment(segment, b"BSDIFF40" + b"p" * 20) for segment in segments)
    return Made(lambda data: list(read_segments(io.BytesIO(data))), (whole, MAGIC))


def _metadata(_: Path) -> Made:
    packed = pack_metadata({"timestamp.json": b"{}", "1.root.json": b"x" * 2000})
    return Made(unpack_metadata, (packed, pack_metadata({})))


def _envelope(_: Path) -> Made:
    """Decoded, verified, and only then decoded further."""
    key = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    keys = (public_key(key),)
    assignment = next(one for one in MESSAGES if isinstance(one, Assignment))
    good = encode_envelope(seal(assignment, ASSIGNMENT_TYPE, [key]))

    def read(data: bytes) -> object:
        found = open_envelope(Assignment, decode_envelope(data), ASSIGNMENT_TYPE, keys)
        assert found == assignment, "bytes that nobody signed were believed"
        return found

    return Made(read, (good,))


def _topics(_: Path) -> Made:
    def read(data: bytes) -> object:
        topic = data.decode("utf-8", "replace")
        try:
            return topics.parse_up(topic)
        except ContractError:
            return topics.parse_down(topic)

    told = ("covey/press-7/up/hello", "covey/press-7/down/blk", f"covey/_all/down/cast/{'a' * 64}")
    return Made(read, tuple(one.encode() for one in told))


def _token(_: Path) -> Made:
    good = f"covey1.{'a' * 64}.{'s' * 32}\n".encode()
    return Made(lambda data: parse_claim_token(data.decode("utf-8", "replace")), (good,))


def _metric(_: Path) -> Made:
    told = ("classification:figure=f1", "detection:boxes=0-3,scores=4-,format=cxcywh", "my_metrics:word_accuracy")
    return Made(lambda data: metric.parse(data.decode("utf-8", "replace")), tuple(one.encode() for one in told))


def _source(_: Path) -> Made:
    """The few bytes by which a source is told, and the table of contents of an archive."""
    from covey_hil.fuzz.decoders.files import archives

    return Made(lambda data: sources.detect(io.BytesIO(data)), (b"\x80\x04x", b"\0\0\0\0TFL3....", *archives()))


def _sample(_: Path) -> Made:
    from covey_hil.fuzz.decoders.files import samples

    return Made(lambda data: read_sample(io.BytesIO(data)), samples())


def _evaluation(_: Path) -> Made:
    from covey_hil.fuzz.decoders.files import evaluations

    return Made(lambda data: metric.check_evaluation("", io.BytesIO(data)), evaluations())


DECODERS = (
    *(
        Decoder(
            f"message.{type(one).__name__}",
            _sender(type(one).__name__),
            partial(_message, one),
            _REFUSES,
            (_WIRE, type(one).__module__),
        )
        for one in MESSAGES
    ),
    Decoder("contract.histogram", "a device", _histogram, _NOT_JSON, ("covey_contract.histogram",)),
    Decoder(
        "contract.conditions", "the server", _conditions, _NOT_JSON, ("covey_contract.conditions",), share=Share.MIDDLE
    ),
    Decoder("contract.block", "the server", _blocks, _REFUSES, ("covey_contract.blocks",), Form.BYTES),
    Decoder("contract.delta", "the server", _delta, _REFUSES, ("covey_contract.delta",), Form.BYTES),
    Decoder("contract.metadata", "the server", _metadata, _REFUSES, ("covey_contract.metadata",), Form.BYTES),
    Decoder(
        "contract.envelope", "the server", _envelope, _REFUSES, ("covey_contract.envelope", "covey_contract.signing")
    ),
    Decoder("contract.topic", "the broker", _topics, _REFUSES, ("covey_contract.topics",), Form.TEXT),
    Decoder("contract.claim_token", "an operator", _token, _REFUSES, ("covey_contract.enrolment",), Form.TEXT),
    Decoder("contract.metric", "an operator", _metric, _REFUSES, ("covey_contract.metric",), Form.TEXT),
    Decoder("contract.source", "an operator", _source, _REFUSES, ("covey_contract.sources",), Form.BYTES, Share.MIDDLE),
    Decoder(
        "contract.sample",
        "a device",
        _sample,
        _REFUSES,
        ("covey_contract.samples", "covey_contract.sources"),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder(
        "contract.evaluation",
        "an operator",
        _evaluation,
        _REFUSES,
        ("covey_contract.metric", "covey_contract.sources"),
        Form.BYTES,
        Share.MIDDLE,
    ),
)
