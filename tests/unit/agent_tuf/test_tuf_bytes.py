"""Bytes from anywhere: whatever arrives under a metadata file's name is refused with a reason, or is what was signed."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata
from tuf.api.serialization import SerializationError

from covey_agent.tuf import trusted as rules
from covey_agent.tuf.errors import Refused
from covey_agent.tuf.trusted import Trusted
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.repository import Repository

NOW = datetime(2030, 1, 1, tzinfo=UTC)
REPOSITORY = Repository(now=NOW)
FILES = {
    "root": REPOSITORY.metadata["1.root.json"],
    "timestamp": REPOSITORY.metadata["timestamp.json"],
    "snapshot": REPOSITORY.metadata["1.snapshot.json"],
    "targets": REPOSITORY.metadata["1.targets.json"],
}


def take(role: str, data: bytes) -> Trusted:
    """The role's bytes, with everything before it as it was published."""
    if role == "root":
        return rules.start(data)
    trusted = rules.start(FILES["root"])
    if role == "timestamp":
        return rules.with_timestamp(trusted, data, NOW)
    trusted = rules.with_timestamp(trusted, FILES["timestamp"], NOW)
    if role == "snapshot":
        return rules.with_snapshot(trusted, data, NOW)
    trusted = rules.with_snapshot(trusted, FILES["snapshot"], NOW)
    return rules.with_role(trusted, "targets", "root", data, NOW)


@pytest.mark.parametrize("role", FILES)
@given(data=st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_random_bytes(role: str, data: bytes) -> None:
    with pytest.raises(Refused):
        take(role, data)


@pytest.mark.parametrize("role", FILES)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_one_byte_changed(role: str, place: int, byte: int) -> None:
    data = bytearray(FILES[role])
    data[place % len(data)] = byte
    try:
        take(role, bytes(data))
    except Refused:
        return
    # What passed says the same: the byte was the same, a space, or in what is not signed (a stranger's signature).
    assert Metadata.from_bytes(bytes(data)).signed == Metadata.from_bytes(FILES[role]).signed


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("role", FILES)
@given(field=st.integers(0, 1000), value=_VALUES)
@settings(max_examples=60, deadline=None)
def test_a_field_of_another_type(role: str, field: int, value: object) -> None:
    """Signed or not, in a form that nobody expects: never an error of ours."""
    document = json.loads(FILES[role])
    places = [(document, key) for key in document]
    places += [(document["signed"], key) for key in document["signed"]]
    for key in ("roles", "meta", "keys"):
        inner = document["signed"].get(key)
        places += [(inner, name) for name in inner] if isinstance(inner, dict) else []
    holder, key = places[field % len(places)]
    holder[key] = value
    with contextlib.suppress(Refused):
        take(role, json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"signed":' * 50_000,
        b'{"signatures":[],"signed":{"_type":"timestamp"}}',
        b'{"signed":{"_type":["root"]}}',
        b'{"signatures":{"a":1},"signed":{"_type":"root"}}',
        b"9" * 10_000,
        b"\xff\xfe",
        b"null",
    ],
)
def test_forms_that_break_parsers(data: bytes) -> None:
    for role in FILES:
        with pytest.raises(Refused) as caught:
            take(role, data)
        assert caught.value.reason is Reason.METADATA_INVALID


@pytest.mark.parametrize("version", [True, 1.0, "1", 0, -1])
def test_a_version_that_is_no_whole_number(version: object) -> None:
    """Rightly signed, as far as that can be."""
    repository = Repository(now=NOW)
    repository.timestamp.version = version  # type: ignore[assignment]
    with contextlib.suppress(SerializationError):
        repository.sign("timestamp")
    data = json.dumps(repository.roles["timestamp"].to_dict()).encode()
    with pytest.raises(Refused) as caught:
        rules.with_timestamp(rules.start(repository.first_root), data, NOW)
    assert caught.value.reason is Reason.METADATA_INVALID


def test_no_timestamp_is_taken_under_a_root_that_has_expired() -> None:
    with pytest.raises(Refused) as caught:
        rules.with_timestamp(rules.start(FILES["root"]), FILES["timestamp"], NOW + timedelta(days=31))
    assert caught.value.reason is Reason.METADATA_EXPIRED


@pytest.mark.parametrize(("role", "other"), [("timestamp", "snapshot"), ("snapshot", "targets"), ("targets", "root")])
def test_one_role_is_not_taken_for_another(role: str, other: str) -> None:
    with pytest.raises(Refused) as caught:
        take(role, FILES[other])
    assert caught.value.reason is Reason.METADATA_INVALID
