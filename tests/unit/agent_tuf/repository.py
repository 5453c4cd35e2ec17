"""A TUF repository that tests bend: made and signed with python-tuf's own API, published as files by name.

A test changes `signed` metadata, then publishes roles; nothing is published by itself, and nothing is checked, so that a test may
publish what no honest repository would. Publishing counts the version up (unless told not to) and writes the role's new version
into the snapshot, or the snapshot's into the timestamp.

>>> repository = Repository()                                # root, timestamp, snapshot and targets in version 1
>>> repository.targets.version
1
>>> repository.add_target("targets", "a/file", b"bytes")
>>> repository.publish("targets", "snapshot", "timestamp")
>>> sorted(repository.metadata)[:3]
['1.root.json', '1.snapshot.json', '1.targets.json']
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

S = TypeVar("S")
TOP = ("targets", "snapshot", "timestamp")


def new_signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


@dataclass
class Repository:
    """`metadata` and `targets_files` are what a web server would serve, by quoted name."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    consistent: bool = True
    pin_metadata: bool = False  # snapshot and timestamp hold lengths and hashes
    roles: dict[str, Metadata[Any]] = field(default_factory=dict)
    signers: dict[str, list[Signer]] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expires = self.now + timedelta(days=30)
        self.roles = {
            "root": Metadata(Root(expires=expires, consistent_snapshot=self.consistent)),
            "targets": Metadata(Targets(expires=expires)),
            "snapshot": Metadata(Snapshot(expires=expires)),
            "timestamp": Metadata(Timestamp(expires=expires)),
        }
        for role in ("root", *TOP):
            self.add_key(role)
        self.publish("root", *TOP, count=False)

    @property
    def root(self) -> Root:
        return self._signed("root", Root)

    @property
    def timestamp(self) -> Timestamp:
        return self._signed("timestamp", Timestamp)

    @property
    def snapshot(self) -> Snapshot:
        return self._signed("snapshot", Snapshot)

    @property
    def targets(self) -> Targets:
        return self._signed("targets", Targets)

    def delegated(self, role: str) -> Targets:
        return self._signed(role, Targets)

    def _signed(self, role: str, kind: type[S]) -> S:
        signed = self.roles[role].signed
        assert isinstance(signed, kind)
        return signed

    @property
    def first_root(self) -> bytes:
        return self.metadata["1.root.json"]

    # --- keys ---------------------------------------------------------------------------------------------------

    def add_key(self, role: str, signer: CryptoSigner | None = None) -> CryptoSigner:
        """One more key for a top-level role."""
        signer = signer or new_signer()
        self.root.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def replace_keys(self, role: str) -> None:
        """All keys of a top-level role by as many new ones."""
        for key in list(self.root.roles[role].keyids):
            self.root.revoke_key(key, role)
        number = len(self.signers[role])
        self.signers[role] = []
        for _ in range(number):
            self.add_key(role)

    # --- content ------------------------------------------------------------------------------------------------

    def add_target(self, role: str, path: str, data: bytes, custom: object = None) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self.delegated(role).targets[path] = target
        folder, slash, name = path.rpartition("/")
        self.files[quote(f"{folder}{slash}{hashlib.sha256(data).hexdigest()}.{name}")] = data
        self.files[quote(path)] = data

    def delegate(
        self,
        delegator: str,
        role: str,
        paths: Sequence[str] | None = ("*",),
        *,
        terminating: bool = False,
        threshold: int = 1,
        hash_prefixes: Sequence[str] | None = None,
    ) -> CryptoSigner:
        """Delegate to a role, which is made if it is new; the role has one key for all its delegators."""
        parent = self.delegated(delegator)
        if parent.delegations is None:
            parent.delegations = Delegations({}, {})
        assert parent.delegations.roles is not None
        parent.delegations.roles[role] = DelegatedRole(
            role,
            [],
            threshold,
            terminating,
            None if hash_prefixes is not None else list(paths or ()),
            list(hash_prefixes) if hash_prefixes is not None else None,
        )
        if role not in self.roles:
            self.roles[role] = Metadata(Targets(expires=self.now + timedelta(days=30)))
            self.signers[role] = [new_signer()]
        for signer in self.signers[role]:
            parent.add_key(signer.public_key, role)
        first = self.signers[role][0]
        assert isinstance(first, CryptoSigner)
        return first

    def delegate_bins(self, delegator: str, bits: int, prefix: str) -> list[str]:
        """Succinct hash bins (TAP 15), all signed by one key."""
        signer = new_signer()
        bins = SuccinctRoles([], 1, bits, prefix)
        self.delegated(delegator).delegations = Delegations({}, None, bins)
        self.delegated(delegator).add_key(signer.public_key)
        for role in bins.get_roles():
            self.roles[role] = Metadata(Targets(expires=self.now + timedelta(days=30)))
            self.signers[role] = [signer]
        return list(bins.get_roles())

    # --- publishing ---------------------------------------------------------------------------------------------

    def publish(self, *roles: str, count: bool = True) -> None:
        """Sign the roles and serve them, in this order; `count`: with their versions counted up."""
        for role in roles:
            metadata = self.roles[role]
            if count and self._is_published(role):
                metadata.signed.version += 1
            self.sign(role)
            data = metadata.to_bytes()
            self._serve(role, metadata.signed.version, data)
            self._tell(role, metadata.signed.version, data)

    def publish_content(self, *roles: str) -> None:
        """The roles, and what must follow them."""
        self.publish(*roles, "targets", "snapshot", "timestamp")

    def sign(self, role: str) -> None:
        metadata = self.roles[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)

    def _is_published(self, role: str) -> bool:
        quoted = quote(role, safe="")
        return any(name == f"{quoted}.json" or name.endswith(f".{quoted}.json") for name in self.metadata)

    def _serve(self, role: str, version: int, data: bytes) -> None:
        quoted = quote(role, safe="")
        if role == "root" or (self.root.consistent_snapshot and role != "timestamp"):
            self.metadata[f"{version}.{quoted}.json"] = data
        else:
            self.metadata[f"{quoted}.json"] = data

    def _tell(self, role: str, version: int, data: bytes) -> None:
        length, hashes = (
            (len(data), {"sha256": hashlib.sha256(data).hexdigest()}) if self.pin_metadata else (None, None)
        )
        if role == "snapshot":
            self.timestamp.snapshot_meta = MetaFile(version, length, hashes)
        elif role not in ("root", "timestamp"):
            self.snapshot.meta[f"{role}.json"] = MetaFile(version, length, hashes)
