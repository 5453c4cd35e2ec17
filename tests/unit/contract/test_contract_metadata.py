"""Bundles come back as they were packed, and nothing that arrives is more than a `DecodeError`."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.errors import DecodeError, TooLargeError
from covey_contract.metadata import MAX_BYTES, PART_BYTES, pack_metadata, parts_of, unpack_metadata


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=100), max_size=5))
def test_there_and_back(files: dict[str, bytes]) -> None:
    assert unpack_metadata(b"".join(parts_of(pack_metadata(files)))) == files


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, packed: bool) -> None:
    with contextlib.suppress(DecodeError):
        unpack_metadata(zlib.compress(data) if packed else data)


def test_a_bomb_is_refused() -> None:
    with pytest.raises(TooLargeError):
        unpack_metadata(zlib.compress(bytes(MAX_BYTES + 10)))


def test_parts_are_of_a_size_that_brokers_take() -> None:
    parts = parts_of(bytes(PART_BYTES * 2 + 1))
    assert [len(part) for part in parts] == [PART_BYTES, PART_BYTES, 1]
    assert parts_of(b"") == [b""]
