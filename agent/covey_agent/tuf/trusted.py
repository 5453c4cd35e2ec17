"""The metadata that is believed, and what may join it: bytes in, the next trusted state or a `Refused` out.

A `Trusted` is never changed; every function gives a new one, so that a refusal leaves the state before it as it was. `now` is the
caller's effective time. Numbers in the comments are sections of the TUF specification 1.0.34.

Invariants: every part was signed by the threshold of keys that its *current* delegator names, and by so many different keys, not
key ids; a root is at most one version newer than the one that vouches for it; no part is older than one that was trusted before.

>>> trusted = start(root_bytes)                                     # doctest: +SKIP
>>> trusted = with_timestamp(trusted, timestamp_bytes, now)         # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from covey_agent.tuf.errors import Refused
from covey_contract.reasons import Reason

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

ROOT, TIMESTAMP, SNAPSHOT, TARGETS = Root.type, Timestamp.type, Snapshot.type, Targets.type
# A target that is pinned by none of these is not pinned.
_STRONG_HASHES = frozenset({"sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2b-256"})


@dataclass(frozen=True, slots=True)
class Trusted:
    """What is believed so far. `roles`: targets metadata by (delegator, role); the top one's delegator is root."""

    root: Root
    timestamp: Timestamp | None = None
    snapshot: Snapshot | None = None
    snapshot_bytes: bytes = b""
    roles: Mapping[tuple[str, str], Targets] = field(default_factory=dict)


def start(data: bytes) -> Trusted:
    """From a root that was handed over by hand; it need only have signed itself. Its age does not matter yet."""
    metadata = _parsed(Root, ROOT, data)
    _check_signatures(metadata.signed, ROOT, metadata)
    return Trusted(metadata.signed)


def with_root(trusted: Trusted, data: bytes) -> Trusted:
    """The next root (5.3.4 to 5.3.7), signed by the one before and by itself. Begins anew with everything below it."""
    metadata = _parsed(Root, ROOT, data)
    _check_signatures(trusted.root, ROOT, metadata)
    _check_signatures(metadata.signed, ROOT, metadata)
    wanted, got = trusted.root.version + 1, metadata.signed.version
    if got != wanted:
        raise Refused(Reason.METADATA_ROLLBACK, f"root has version {got}; only {wanted} may follow")
    return Trusted(metadata.signed)


def check_root(trusted: Trusted, now: datetime) -> None:
    """Whether the newest root is still good (5.3.10). Those on the way to it may be of any age."""
    _check_fresh(ROOT, trusted.root, now)


def revokes(old: Root, new: Root) -> bool:
    """Whether the new root takes a timestamp or snapshot key away: what these had signed is forgotten (5.3.11), so that a
    version number that a thief drove up does not lock out the owner's next one."""
    return any(set(old.roles[role].keyids) - set(new.roles[role].keyids) for role in (TIMESTAMP, SNAPSHOT))


def with_timestamp(trusted: Trusted, data: bytes, now: datetime) -> Trusted:
    """A timestamp (5.4). The same object comes back if it is not newer. Whether it has expired is `check_timestamp`'s matter: an
    expired one that is stored still tells below which version nothing may go."""
    check_root(trusted, now)
    metadata = _parsed(Timestamp, TIMESTAMP, data)
    _check_signatures(trusted.root, TIMESTAMP, metadata)
    new, old = metadata.signed, trusted.timestamp
    if old is not None:
        if new.version == old.version:
            return trusted
        _check_not_older(TIMESTAMP, new.version, old.version)
        _check_not_older("snapshot in the new timestamp", new.snapshot_meta.version, old.snapshot_meta.version)
    return replace(trusted, timestamp=new)


def check_timestamp(trusted: Trusted, now: datetime) -> Timestamp:
    """The timestamp, if it is there and still good (5.4.4)."""
    if trusted.timestamp is None:
        raise Refused(Reason.METADATA_INVALID, "there is no timestamp")
    _check_fresh(TIMESTAMP, trusted.timestamp, now)
    return trusted.timestamp


def with_snapshot(trusted: Trusted, data: bytes, now: datetime, *, stored: bool = False) -> Trusted:
    """A snapshot (5.5). A stored one was verified when it came; it may be older than the timestamp says, and then only serves to
    tell below which versions nothing may go: whether it is the final one is `check_snapshot`'s matter."""
    expected = check_timestamp(trusted, now).snapshot_meta
    if not stored:
        _check_bytes(SNAPSHOT, expected, data)
    metadata = _parsed(Snapshot, SNAPSHOT, data)
    _check_signatures(trusted.root, SNAPSHOT, metadata)
    new, old = metadata.signed, trusted.snapshot
    if old is not None:
        _check_not_older(SNAPSHOT, new.version, old.version)
        for name, file in old.meta.items():
            if name not in new.meta:
                raise Refused(Reason.METADATA_ROLLBACK, f"the new snapshot no longer knows {name}")
            _check_not_older(name, new.meta[name].version, file.version)
    return replace(trusted, snapshot=new, snapshot_bytes=data)


def check_snapshot(trusted: Trusted, now: datetime) -> Snapshot:
    """The snapshot, if it is the very one that the timestamp names and still good (5.5.4, 5.5.6)."""
    expected = check_timestamp(trusted, now).snapshot_meta
    if trusted.snapshot is None:
        raise Refused(Reason.METADATA_INVALID, "there is no snapshot")
    version = trusted.snapshot.version
    if version != expected.version:
        raise Refused(
            Reason.METADATA_MISMATCH, f"snapshot has version {version}; the timestamp names {expected.version}"
        )
    _check_bytes(SNAPSHOT, expected, trusted.snapshot_bytes)
    _check_fresh(SNAPSHOT, trusted.snapshot, now)
    return trusted.snapshot


def expected_role(trusted: Trusted, role: str, now: datetime) -> MetaFile:
    """What the snapshot says of a targets role: version, and perhaps length and hashes."""
    found = check_snapshot(trusted, now).meta.get(f"{role}.json")
    if found is None:
        raise Refused(Reason.METADATA_MISMATCH, f"the snapshot does not know the role {role!r}")
    return found


def with_role(trusted: Trusted, role: str, delegator: str, data: bytes, now: datetime) -> Trusted:
    """Targets metadata (5.6), the top one or a delegated one. A stored one passes by the same rules as one that comes new: it is
    verified against its delegator as that is now."""
    expected = expected_role(trusted, role, now)
    _check_bytes(role, expected, data)
    metadata = _parsed(Targets, role, data)
    _check_signatures(delegator_of(trusted, delegator), role, metadata)
    if metadata.signed.version != expected.version:
        raise Refused(
            Reason.METADATA_MISMATCH,
            f"{role} has version {metadata.signed.version}; the snapshot names {expected.version}",
        )
    _check_fresh(role, metadata.signed, now)
    return replace(trusted, roles={**trusted.roles, (delegator, role): metadata.signed})


def delegator_of(trusted: Trusted, name: str) -> Root | Targets:
    if name == ROOT:
        return trusted.root
    for (_, role), targets in trusted.roles.items():
        if role == name:
            return targets
    raise Refused(Reason.METADATA_INVALID, f"the role {name!r} is not trusted")


def is_pinned(hashes: Mapping[str, str]) -> bool:
    """Whether a strong hash is among them."""
    return not _STRONG_HASHES.isdisjoint(hashes)


def _parsed(kind: type[S], role: str, data: bytes) -> Metadata[S]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except DeserializationError as error:
        raise Refused(Reason.METADATA_INVALID, f"{role} is not metadata: {error.__cause__ or error}") from error
    if type(metadata.signed) is not kind:
        raise Refused(Reason.METADATA_INVALID, f"{role} is of type {metadata.signed.type!r}")
    if type(metadata.signed.version) is not int:
        raise Refused(Reason.METADATA_INVALID, f"{role} has no whole number for a version")
    return metadata


def _check_signatures(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> None:
    try:
        payload = metadata.signed_bytes
        result = delegator.get_verification_result(role, payload, metadata.signatures)
    except (SerializationError, ValueError, TypeError, KeyError) as error:
        raise Refused(Reason.METADATA_INVALID, f"{role} cannot be verified: {error}") from error
    signers = {_identity(key) for key in result.signed.values()} if result.threshold > 1 else result.signed
    if len(signers) < result.threshold:
        raise Refused(
            Reason.METADATA_UNSIGNED, f"{role} is signed by {len(signers)} of the {result.threshold} keys that it needs"
        )


def _identity(key: Key) -> bytes:
    """Tells keys apart by what they are: key ids are opaque, and one key may have many."""
    public = str(key.keyval.get("public", ""))
    try:
        loaded = load_pem_public_key(public.encode())
    except ValueError:
        return public.lower().encode()
    return loaded.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_fresh(role: str, signed: Signed, now: datetime) -> None:
    if signed.is_expired(now):
        raise Refused(
            Reason.METADATA_EXPIRED, f"{role} version {signed.version} expired at {signed.expires:%Y-%m-%dT%H:%M:%SZ}"
        )


def _check_not_older(what: str, new: int, old: int) -> None:
    if new < old:
        raise Refused(Reason.METADATA_ROLLBACK, f"{what} has version {new}; {old} was trusted before")


def _check_bytes(role: str, expected: MetaFile, data: bytes) -> None:
    try:
        expected.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise Refused(Reason.METADATA_MISMATCH, f"{role} is not the file that is named: {error}") from error
