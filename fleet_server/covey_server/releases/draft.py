"""The next edition in the making: changes are made to copies, then everything that changed is counted up, dated and signed.

Pure but for the signers it is given. What cannot be signed raises, and nothing has happened.

>>> draft = Draft(edition, policy, now)                                                    # doctest: +SKIP
>>> draft.put("digits", TargetFile.from_data("models/digits/1.0/tflite-int8", manifest))   # doctest: +SKIP
>>> shelf.publish(draft.finish(keyring.sign))                                              # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any

from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata, MetaFile, Role, Root, TargetFile, Targets

from covey_server.releases.edition import Edition, bins_of
from covey_server.releases.policy import (
    ISSUED,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIME_FORMAT,
    TIMESTAMP,
    Policy,
    bin_prefixes,
    bin_role,
    model_of,
    publisher_paths,
    publisher_role,
)
from covey_server.releases.shelf import metadata_name

# Signs the metadata of a role with the keys that its delegator names; raises `KeysMissing` if too few are at hand.
Sign = Callable[[str, Metadata[Any], Role, Mapping[str, Key]], None]


class Draft:
    """One change of the repository, however many roles it touches."""

    def __init__(self, edition: Edition, policy: Policy, now: datetime) -> None:
        self._edition = edition
        self._policy = policy
        self._now = now
        self._changed: dict[str, Metadata[Targets]] = {}
        self._as_they_are: set[str] = set()  # signed elsewhere: published as they came
        self._root: Metadata[Root] | None = None
        self._new_snapshot = False
        self._grown: set[str] = set()

    @property
    def empty(self) -> bool:
        return not self._changed and self._root is None

    def renew_snapshot(self) -> None:
        """Sign the snapshot anew although nothing in it changes."""
        self._new_snapshot = True

    def targets_of(self, role: str) -> Targets:
        """A role's metadata, to be looked at."""
        found = self._changed.get(role) or self._edition.role(role)
        return found.signed

    def change(self, role: str) -> Targets:
        """A role's metadata, to be changed (or only to be signed anew)."""
        if role not in self._changed:
            known = f"{role}.json" in self._edition.snapshot.signed.meta
            new: Metadata[Targets] = Metadata(Targets(version=1, expires=self._now))
            self._changed[role] = deepcopy(self._edition.role(role)) if known else new
        return self._changed[role].signed

    # --- targets ------------------------------------------------------------------------------------------------

    def put(self, model: str, target: TargetFile) -> None:
        """Add a target of a family, or replace it. Raises `KeyError` if the family has no publisher."""
        role = self._role_for(model, target.path)
        if self.targets_of(role).targets.get(target.path) != target:
            self.change(role).targets[target.path] = target
            self._grown.add(model)

    def remove(self, model: str, path: str) -> None:
        """Take a target out; one that is not there is no error."""
        role = self._role_for(model, path)
        if path in self.targets_of(role).targets:
            del self.change(role).targets[path]

    def _role_for(self, model: str, path: str) -> str:
        publisher = publisher_role(model)
        bins = bins_of(self.targets_of(publisher))
        if not bins:
            return publisher
        digits = len(bins[0]) - len(bin_role(model, ""))
        return bin_role(model, hashlib.sha256(path.encode()).hexdigest()[:digits])

    def _spread(self, model: str) -> None:
        """Give a family that has outgrown its role, or its bins, more of them. It is never taken back: a snapshot may not forget."""
        publisher = publisher_role(model)
        old = bins_of(self.targets_of(publisher))
        held = [publisher, *old]
        wanted = self._policy.bin_count(sum(len(self.targets_of(role).targets) for role in held))
        if wanted <= len(old):
            return
        every = {path: target for role in held for path, target in self.targets_of(role).targets.items()}
        parent = self.change(publisher)
        entry, keys = self._delegation(publisher)
        prefixes = bin_prefixes(wanted)
        parent.targets = {}
        parent.delegations = Delegations(
            {keyid: keys[keyid] for keyid in entry.keyids},
            {
                bin_role(model, prefix): DelegatedRole(
                    bin_role(model, prefix), list(entry.keyids), entry.threshold, True, None, [prefix]
                )
                for prefix in prefixes
            },
        )
        for role in old:  # nobody delegates to them any longer: they stay as they are
            self._changed.pop(role, None)
        for prefix in prefixes:
            self._changed[bin_role(model, prefix)] = Metadata(Targets(version=1, expires=self._now))
        for path, target in every.items():
            self.change(self._role_for(model, path)).targets[path] = target

    # --- who is trusted -------------------------------------------------------------------------------------------

    def delegate(self, model: str, keys: list[Key], threshold: int) -> None:
        """Let these keys speak for a family of models: a new one, or from now on."""
        top = self.change(TARGETS)
        role = publisher_role(model)
        if top.delegations is None:
            top.delegations = Delegations({}, {})
        delegations = top.delegations
        assert delegations.roles is not None  # noqa: S101 - our own metadata have no succinct roles
        delegations.roles[role] = DelegatedRole(role, [], threshold, True, publisher_paths(model))
        for key in keys:
            top.add_key(key, role)
        trusted = {keyid for entry in delegations.roles.values() for keyid in entry.keyids}
        delegations.keys = {keyid: key for keyid, key in delegations.keys.items() if keyid in trusted}
        if f"{role}.json" not in self._edition.snapshot.signed.meta:
            self._changed.setdefault(role, Metadata(Targets(version=1, expires=self._now)))
            return
        publisher = self.change(role)  # by its new keys
        if publisher.delegations is not None and publisher.delegations.roles is not None:
            publisher.delegations.keys = {key.keyid: key for key in keys}
            for name, entry in publisher.delegations.roles.items():
                entry.keyids, entry.threshold = [key.keyid for key in keys], threshold
                self.change(name)

    def accept(self, role: str, metadata: Metadata[Any]) -> None:
        """Metadata that was signed elsewhere, and checked: root, or a targets role."""
        if role == ROOT:
            self._root = metadata
            return
        self._changed[role] = metadata
        self._as_they_are.add(role)
        if role == TARGETS and metadata.signed.delegations is not None:
            for name in metadata.signed.delegations.roles or {}:
                if f"{name}.json" not in self._edition.snapshot.signed.meta:
                    self._changed.setdefault(name, Metadata(Targets(version=1, expires=self._now)))

    # --- the end --------------------------------------------------------------------------------------------------

    def _delegation(self, role: str) -> tuple[Role, Mapping[str, Key]]:
        """As it will be in this edition."""
        root = self._root.signed if self._root is not None else self._edition.root.signed
        if role in root.roles:
            return root.roles[role], root.keys
        model = model_of(role)
        if model is None:
            raise KeyError(role)
        delegator = self.targets_of(TARGETS if role == publisher_role(model) else publisher_role(model))
        if delegator.delegations is None or delegator.delegations.roles is None:
            raise KeyError(role)
        return delegator.delegations.roles[role], delegator.delegations.keys

    def finish(self, sign: Sign) -> list[tuple[str, bytes]]:
        """The edition's new files in the order in which they are to be written: bottom up, `timestamp.json` last."""
        for model in sorted(self._grown):
            self._spread(model)
        files: list[tuple[str, bytes]] = []
        meta = dict(self._edition.snapshot.signed.meta)
        for role, metadata in self._changed.items():
            if role not in self._as_they_are:
                known = meta.get(f"{role}.json")
                metadata.signed.version = known.version + 1 if known is not None else 1
                self._sign(role, metadata, sign)
            meta[f"{role}.json"] = MetaFile(metadata.signed.version)
            files.append((metadata_name(role, metadata.signed.version), metadata.to_bytes()))
        timestamp = deepcopy(self._edition.timestamp)
        if self._new_snapshot or not self.empty:
            snapshot = deepcopy(self._edition.snapshot)
            snapshot.signed.meta = meta
            snapshot.signed.version += 1
            self._sign(SNAPSHOT, snapshot, sign)
            data = snapshot.to_bytes()
            files.append((metadata_name(SNAPSHOT, snapshot.signed.version), data))
            hashes = {"sha256": hashlib.sha256(data).hexdigest()}
            timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version, len(data), hashes)
        if self._root is not None:
            files.append((metadata_name(ROOT, self._root.signed.version), self._root.to_bytes()))
        timestamp.signed.version += 1
        timestamp.signed.unrecognized_fields[ISSUED] = self._now.strftime(TIME_FORMAT)
        self._sign(TIMESTAMP, timestamp, sign)
        files.append(("timestamp.json", timestamp.to_bytes()))
        return files

    def _sign(self, role: str, metadata: Metadata[Any], sign: Sign) -> None:
        metadata.signed.expires = self._now + self._policy.lifetime(role)
        entry, keys = self._delegation(role)
        sign(role, metadata, entry, keys)
