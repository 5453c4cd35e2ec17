"""Messages as bytes: round trips, limits, versions, and bytes from someone who means harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_contract import building, enrolment, messages
from covey_contract.blocks import Block, bitmap_of, blocks_of, decode_block, encode_block
from covey_contract.envelope import decode_envelope
from covey_contract.errors import ContractError, DecodeError, TooLargeError, TopicError, UnknownVersionError
from covey_contract.facts import Facts
from covey_contract.lifecycle import State
from covey_contract.manifest import Manifest
from covey_contract.reasons import Reason
from covey_contract.topics import Down, Up, down, parse_down, parse_up, up
from covey_contract.wire import Message, decode, encode

KINDS: list[type[Message]] = [
    messages.Hello,
    messages.Status,
    messages.Report,
    messages.Telemetry,
    messages.BlockRequest,
    messages.Reply,
    messages.Assignment,
    messages.Order,
    messages.Command,
    messages.Ack,
    enrolment.EnrolRequest,
    enrolment.EnrolResponse,
    building.BuildReport,
    building.BuildJob,
    building.LeaseRequest,
    Facts,
    Manifest,
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
def test_hostile_bytes_are_a_contract_error(kind: type[Message], data: bytes) -> None:
    try:
        decode(kind, data)
    except ContractError:
        return


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hostile_json_with_our_field_names_is_a_contract_error(kind: type[Message], data: st.DataObject) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    document = data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=len(names)))
    try:
        message = decode(kind, msgspec.json.encode(document))
    except ContractError:
        return
    assert isinstance(message, kind)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200) | json_values.map(msgspec.json.encode))
def test_hostile_envelopes_are_a_contract_error(data: bytes) -> None:
    try:
        decode_envelope(data)
    except ContractError:
        return


def test_deep_nesting_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode(messages.Hello, b'{"models":' + b"[" * 50_000 + b"]" * 50_000 + b"}")


def test_generated_messages_survive_the_wire() -> None:
    report = messages.Report(
        seq=7,
        time_ms=1,
        assignment="a1",
        counter=3,
        model="digits",
        version="1.0",
        build="ab" * 32,
        state=State.ROLLED_BACK,
        reason=Reason.RUNNER_CRASHED,
        detail="exit code -9",
    )
    assert decode(messages.Report, encode(report)) == report


def test_unknown_fields_are_ignored() -> None:
    assert decode(messages.Status, b'{"boot_id":"b","online":true,"mood":"good"}').online


@pytest.mark.parametrize("data", [b'{"v":2,"boot_id":"b","online":true}', b'{"v":2,"other":"shape"}'])
def test_another_version_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(UnknownVersionError):
        decode(messages.Status, data)


def test_too_large_a_message_is_refused_on_both_sides() -> None:
    with pytest.raises(TooLargeError):
        decode(messages.Status, b" " * (messages.Status.MAX_BYTES + 1))
    with pytest.raises(TooLargeError):
        encode(messages.Ack(seqs=tuple(range(1 << 40, (1 << 40) + 2000))))


@given(device=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True), what=st.sampled_from(Up))
def test_topics_of_devices_read_back(device: str, what: Up) -> None:
    assert parse_up(up(device, what)) == (device, what)


@pytest.mark.parametrize("device", ["", "_all", "a/b", "a b", "a.b", "+", "#", "x" * 65, "ä"])
def test_names_that_may_not_stand_in_a_topic(device: str) -> None:
    with pytest.raises(TopicError):
        up(device, Up.HELLO)


@given(topic=st.text(max_size=60))
def test_foreign_topics_are_refused(topic: str) -> None:
    for parse in (parse_up, parse_down):
        try:
            parse(topic)
        except TopicError:
            continue
        assert topic.startswith("covey/")


def test_topics_of_the_server_read_back() -> None:
    assert all(parse_down(down("d1", what)) is what for what in Down)


@given(
    build=st.binary(min_size=32, max_size=32),
    file=st.integers(0, 2**32 - 1),
    index=st.integers(0, 2**32 - 1),
    data=st.binary(min_size=1, max_size=200),
)
def test_blocks_survive_the_wire(build: bytes, file: int, index: int, data: bytes) -> None:
    assert decode_block(encode_block(build.hex(), file, index, data)) == Block(build[:8], file, index, data)


@pytest.mark.parametrize("payload", [b"", b"x" * 16, b"x" * (16 + 65537)])
def test_truncated_and_oversized_blocks_are_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_block(payload)


@given(base=st.integers(0, 2**31), offsets=st.sets(st.integers(0, 15), min_size=1))
def test_bitmaps_name_the_blocks_they_were_made_of(base: int, offsets: set[int]) -> None:
    wanted = sorted(base + offset for offset in offsets)
    assert blocks_of(base, bitmap_of(base, wanted)) == wanted


def test_a_block_out_of_reach_does_not_fit_a_bitmap() -> None:
    with pytest.raises(DecodeError):
        bitmap_of(10, [26])
