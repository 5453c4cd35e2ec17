"""Who is trusted: the first root, the next one, and the keys that sign them away from the server. Pure over metadata.

A change of root or targets is a *document*: metadata with too few signatures yet. It is made here (`first_root`, `next_root`), carried
to whoever holds the keys, signed by each (`add_signature`), carried back and published, see `Releases.accept`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import Key, Signer, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError, SerializationError

from covey_server.releases.errors import BadMetadata
from covey_server.releases.policy import DIRECTOR, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Policy


@dataclass(frozen=True)
class Trustees:
    """The keys that may sign for a role, and how many of them must."""

    keys: Sequence[Key]
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len({key.keyid for key in self.keys}):
            raise BadMetadata(f"{self.threshold} of {len(self.keys)} keys can never sign")


@dataclass(frozen=True)
class RootChange:
    """What the next root does differently. `roles`: new trustees by role; `director`: new keys for orders; neither named stays."""

    roles: Mapping[str, Trustees] = field(default_factory=dict)
    director: Trustees | None = None


def first_root(roles: Mapping[str, Trustees], director: Trustees, policy: Policy, now: datetime) -> Metadata[Root]:
    """Version 1, unsigned. `roles` names all four."""
    root = Root(version=1, expires=now + policy.lifetime(ROOT), consistent_snapshot=True)
    for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
        _entrust(root, role, roles[role])
    _entrust_director(root, director)
    return Metadata(root)


def next_root(current: Root, change: RootChange, policy: Policy, now: datetime) -> Metadata[Root]:
    """The next version, unsigned. Without any change it only lasts longer."""
    root = deepcopy(current)
    root.version += 1
    root.expires = now + policy.lifetime(ROOT)
    for role, trustees in change.roles.items():
        if role not in root.roles:
            raise BadMetadata(f"{role} is no role of root; a publisher is delegated to by targets")
        _entrust(root, role, trustees)
    if change.director is not None:
        _entrust_director(root, change.director)
    return Metadata(root)


def _entrust(root: Root, role: str, trustees: Trustees) -> None:
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for key in trustees.keys:
        root.add_key(key, role)
    root.roles[role].threshold = trustees.threshold


def _entrust_director(root: Root, director: Trustees) -> None:
    for key in director.keys:
        if key.keytype != "ed25519":
            raise BadMetadata(f"orders are signed with Ed25519; {key.keyid[:12]} is a key of the kind {key.keytype}")
    root.unrecognized_fields[DIRECTOR] = {
        "keys": {key.keyid: key.to_dict() for key in director.keys},
        "threshold": director.threshold,
    }


def director_keys(root: Root) -> list[bytes]:
    """The raw Ed25519 keys that may sign orders. Raises `BadMetadata`."""
    try:
        keys = root.unrecognized_fields[DIRECTOR]["keys"].values()
        return [bytes.fromhex(key["keyval"]["public"]) for key in keys]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadMetadata(f"root names no keys for orders: {error}") from error


def director_key(public: bytes) -> Key:
    """A raw Ed25519 key as root holds it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public))


def add_signature(document: Metadata[Any], signer: Signer, signers: Mapping[str, Key]) -> None:
    """Sign a document, if that is the signer's to do. Raises `BadMetadata`."""
    if signer.public_key.keyid not in signers:
        raise BadMetadata(f"the key {signer.public_key.keyid[:12]} has no say in this document")
    document.sign(signer, append=True)


def signers_of(document: Metadata[Any], current: Root | None) -> dict[str, Key]:
    """Whose signatures a root or targets document may need: those of the root before, and for a root its own."""
    named: dict[str, Key] = {}
    for root in (current, document.signed if isinstance(document.signed, Root) else None):
        if root is not None:
            role = ROOT if isinstance(document.signed, Root) else TARGETS
            named.update({keyid: root.keys[keyid] for keyid in root.roles[role].keyids})
    return named


def check_root(document: Metadata[Root], current: Root | None) -> None:
    """Whether devices that trust `current` will follow this root. Raises `BadMetadata`."""
    root = document.signed
    if root.version != (current.version + 1 if current is not None else 1):
        raise BadMetadata(f"root version {root.version} does not follow {current.version if current else 0}")
    director_keys(root)
    for by in (current, root):
        if by is not None:
            check_signed(by, ROOT, document)


def check_signed(delegator: Any, role: str, document: Metadata[Any]) -> None:
    """Raises `BadMetadata` unless the delegator's threshold is reached."""
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (UnsignedMetadataError, SerializationError, ValueError) as error:
        raise BadMetadata(f"{role} version {document.signed.version}: {error}") from error


def parse(data: bytes) -> Metadata[Any]:
    """Raises `BadMetadata`."""
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as error:
        raise BadMetadata(f"this is not metadata: {error.__cause__ or error}") from error
