"""A delta's framing: what was written is read back, and nothing that arrives is more than a `DecodeError`."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.delta import MAGIC, SOURCE_BYTES, Segment, encode_segment, read_segments
from covey_contract.errors import DecodeError

ONE = Segment(file=1, first=8, blocks=3, source="ab" * 32, source_at=1 << 33, source_size=7, at=0, size=5)


def test_segments_come_back_with_their_places() -> None:
    data = MAGIC + encode_segment(ONE, b"patch") + encode_segment(ONE, b"")
    first, second = read_segments(io.BytesIO(data))
    assert data[first.at : first.at + first.size] == b"patch"
    assert (second.at, second.size) == (len(data), 0)
    assert (first.first, first.blocks, first.source, first.source_at) == (8, 3, "ab" * 32, 1 << 33)


@pytest.mark.parametrize(
    "change",
    [
        {"file": 0},
        {"file": 257},
        {"blocks": 0},
        {"blocks": 9},
        {"source_size": SOURCE_BYTES + 1},
    ],
)
def test_what_is_out_of_bounds_is_refused(change: dict[str, int]) -> None:
    fields = {name: getattr(ONE, name) for name in ONE.__slots__} | change
    with pytest.raises(DecodeError):
        list(read_segments(io.BytesIO(MAGIC + encode_segment(Segment(**fields), b""))))


@pytest.mark.parametrize("data", [b"", b"COVEYDL2", MAGIC + b"x", MAGIC + encode_segment(ONE, b"patch")[:-1]])
def test_a_stump_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        list(read_segments(io.BytesIO(data)))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        for segment in read_segments(io.BytesIO(MAGIC + data)):
            assert segment.at + segment.size <= len(MAGIC) + len(data)
