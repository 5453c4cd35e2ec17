"""The repository as the rest of the server knows it: release builds, withdraw them, sign anew, say how everything stands.

Every change reads the published edition within the lock, makes a draft, signs it and publishes it; if anything fails on the way the
old edition stands. Methods raise `KeysMissing` where a role's keys are not at hand, `RepositoryDamaged`, and `OSError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from covey_server.clock import Clock
from covey_server.errors import NotFound
from covey_server.releases.ceremony import (
    RootChange,
    Trustees,
    check_root,
    check_signed,
    director_keys,
    first_root,
    next_root,
    signers_of,
)
from covey_server.releases.draft import Draft
from covey_server.releases.edition import Edition
from covey_server.releases.errors import BadMetadata, KeysMissing, RepositoryDamaged
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import (
    DIRECTOR,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Policy,
    model_of,
    publisher_role,
)
from covey_server.releases.release import Release, counters_of, target_of, with_counter
from covey_server.releases.shelf import Shelf, metadata_name

log = logging.getLogger(__name__)

_TOP = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)


@dataclass(frozen=True)
class RoleStatus:
    """How a role stands. `keys`: name (or id) and where the private key is, "" where it is not at hand."""

    role: str
    version: int
    expires: datetime
    threshold: int
    keys: tuple[tuple[str, str], ...]
    due: bool
    alarm: bool
    expired: bool


class Releases:
    """One repository. `clock` gives Unix milliseconds."""

    def __init__(self, shelf: Shelf, keyring: Keyring, policy: Policy, clock: Clock) -> None:
        self.shelf = shelf
        self.keyring = keyring
        self.policy = policy
        self._clock = clock
        self._edition: Edition | None = None
        self._edition_bytes = b""

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self.shelf.newest_root() > 0

    def edition(self) -> Edition:
        """What is published now; read again only when it has changed."""
        try:
            stamp = self.shelf.metadata("timestamp.json")
        except NotFound as error:
            raise RepositoryDamaged("there is no repository of releases yet") from error
        if self._edition is None or stamp != self._edition_bytes:
            old = self._edition
            new = Edition(self.shelf.metadata, self.shelf.newest_root())
            if old is not None:
                new.take_over(old)
            self._edition, self._edition_bytes = new, stamp
        return self._edition

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock() // 1000, UTC)

    def find(self, path: str) -> TargetFile | None:
        model = path.split("/")[1]
        return next((target for name, target in self.edition().targets(model) if name == path), None)

    def root_bytes(self) -> bytes:
        """The newest root, as devices are given it when they enrol."""
        return self.shelf.metadata(metadata_name(ROOT, self.shelf.newest_root()))

    def director_keys(self) -> list[bytes]:
        return director_keys(self.edition().root.signed)

    # --- releasing ------------------------------------------------------------------------------------------------

    def release(self, builds: Sequence[Release]) -> dict[str, int]:
        """Release builds in one edition; their release counters by path. A version that has one keeps it, a new one gets the next
        of its family. A family without a publisher gets one, if the keys of targets are at hand."""
        counters: dict[str, int] = {}

        def edit(draft: Draft, edition: Edition) -> None:
            for model in dict.fromkeys(build.model for build in builds):
                self._ensure_publisher(draft, edition, model)
            taken = {model: counters_of(edition.targets(model)) for model in {build.model for build in builds}}
            for build in builds:
                known = taken[build.model]
                counter = known.setdefault(build.version, max(known.values(), default=0) + 1)
                counters[build.path] = counter
                draft.put(build.model, target_of(build, counter))

        for build in builds:
            name = TargetFile.from_data(build.path, build.manifest, ["sha256"]).get_prefixed_paths()[0]
            self.shelf.put_target(name, build.manifest)
        self._change(edit)
        return counters

    def release_again(self, model: str, version: str) -> int:
        """Give an old version's builds the highest counter of the family, so that devices may go back to it; the counter."""
        counter = 0

        def edit(draft: Draft, edition: Edition) -> None:
            nonlocal counter
            every = list(edition.targets(model))
            known = counters_of(every)
            if version not in known:
                raise NotFound(f"{model} {version} was never released")
            highest = max(known.values())
            counter = known[version] if known[version] == highest else highest + 1
            for path, target in every:
                if path.split("/")[2] == version:
                    draft.put(model, with_counter(target, counter))

        self._change(edit)
        return counter

    def withdraw(self, model: str, version: str) -> int:
        """Take all builds of a version back: no device accepts them from its next refresh on. How many they were."""
        gone: list[str] = []

        def edit(draft: Draft, edition: Edition) -> None:
            gone.extend(path for path, _ in edition.targets(model) if path.split("/")[2] == version)
            if gone:
                self.shelf.note_withdrawn(gone)
            for path in gone:
                draft.remove(model, path)

        self._change(edit)
        return len(gone)

    def _ensure_publisher(self, draft: Draft, edition: Edition, model: str) -> None:
        if edition.is_delegated(publisher_role(model)):
            return
        publishers = self.keyring.publishers()
        if not publishers:
            raise KeysMissing(
                f"{model} has no publisher; `covey-server keys delegate {model}` gives it one",
                role=publisher_role(model),
            )
        draft.delegate(model, publishers, 1)

    # --- upkeep -------------------------------------------------------------------------------------------------

    def renew(self) -> list[str]:
        """Sign anew whatever has less than half of its life left and can be signed here; the roles that were.

        What is signed away from this server is left alone: `status` says when that becomes urgent."""
        now = self.now()
        renewed: list[str] = []

        def edit(draft: Draft, edition: Edition) -> None:
            if self._mends(edition):
                draft.renew_snapshot()
            for role in self._due(edition, now):
                if role == ROOT:
                    root = next_root(edition.root.signed, RootChange(), self.policy, now)
                    self._sign_root(root, edition.root.signed)
                    draft.accept(ROOT, root)
                elif role == SNAPSHOT:
                    draft.renew_snapshot()
                elif role != TIMESTAMP:
                    draft.change(role)
                renewed.append(role)

        edition = self.edition()
        if self._due(edition, now) or self._mends(edition):
            self._change(edit, always=True)
        return renewed

    def _due(self, edition: Edition, now: datetime) -> list[str]:
        """The roles that are to be signed anew, and can be."""
        return [
            role
            for role in (*_TOP[:1], *edition.delegated_roles(), *_TOP[2:])
            if edition.metadata(role).signed.expires - now < self.policy.renewal(role) and self._can_sign(edition, role)
        ]

    def _can_sign(self, edition: Edition, role: str) -> bool:
        entry, _ = edition.delegation(role)
        return sum(self.keyring.has(keyid) for keyid in entry.keyids) >= entry.threshold

    def _mends(self, edition: Edition) -> bool:
        """Whether a kill between a new root and its timestamp left one that the root does not vouch for."""
        root = edition.root.signed
        return not all(_is_signed(root, role, edition.metadata(role)) for role in (TIMESTAMP, SNAPSHOT))

    def prune(self) -> int:
        """Forget metadata that nothing leads to; how many files went."""
        with self.shelf.locked():
            return self.shelf.prune(self.edition().files(), self._clock())

    def status(self) -> list[RoleStatus]:
        """Every role that counts, bins of one family as one: the one that expires first."""
        edition, now = self.edition(), self.now()
        rows: dict[str, RoleStatus] = {}
        for role in (ROOT, *edition.delegated_roles(), SNAPSHOT, TIMESTAMP):
            row = self._status(edition, role, now)
            model = model_of(role)
            label = publisher_role(model) if model is not None else role
            if label not in rows or row.expires < rows[label].expires:
                rows[label] = row
        return list(rows.values())

    def _status(self, edition: Edition, role: str, now: datetime) -> RoleStatus:
        signed = edition.metadata(role).signed
        entry, _ = edition.delegation(role)
        left = signed.expires - now
        records = [(keyid, self.keyring.record(keyid)) for keyid in entry.keyids]
        return RoleStatus(
            role=role,
            version=signed.version,
            expires=signed.expires,
            threshold=entry.threshold,
            keys=tuple((record.name, record.uri) if record else (keyid, "") for keyid, record in records),
            due=left < self.policy.renewal(role),
            alarm=left < self.policy.alarm(role),
            expired=signed.is_expired(now),
        )

    def trusted_keyids(self) -> set[str]:
        """All keys that anything is believed of, those for orders among them."""
        edition = self.edition()
        root = edition.root.signed
        keyids = {keyid for role in root.roles.values() for keyid in role.keyids}
        keyids |= set(root.unrecognized_fields.get(DIRECTOR, {}).get("keys", {}))
        for role in edition.delegated_roles():
            keyids |= set(edition.delegation(role)[0].keyids)
        return keyids

    # --- who is trusted -----------------------------------------------------------------------------------------

    def create(self, root: Metadata[Root], targets: Metadata[Targets] | None = None) -> None:
        """The first edition, by a root that is signed. `targets`, where they were signed elsewhere too. Raises `BadMetadata`."""
        with self.shelf.locked():
            if self.exists:
                raise BadMetadata("there is a repository already")
            check_root(root, None)
            draft = Draft(_EmptyEdition(root, self.now()), self.policy, self.now())
            draft.accept(ROOT, root)
            if targets is None:
                draft.change(TARGETS)
            else:
                check_signed(root.signed, TARGETS, targets)
                draft.accept(TARGETS, targets)
            self.shelf.publish(draft.finish(self.keyring.sign))

    def propose_first(
        self, roles: Mapping[str, Trustees], director: Trustees, families: Mapping[str, Trustees]
    ) -> tuple[Metadata[Root], Metadata[Targets]]:
        """The first root and targets, unsigned. `roles` names all four; `families`: who speaks for which models."""
        root = first_root(roles, director, self.policy, self.now())
        edition = _EmptyEdition(root, self.now())
        draft = Draft(edition, self.policy, self.now())
        draft.change(TARGETS)
        for model, trustees in families.items():
            draft.delegate(model, list(trustees.keys), trustees.threshold)
        return root, _unsigned(draft, edition, self.policy, self.now())

    def propose_root(self, change: RootChange) -> Metadata[Root]:
        """The next root, unsigned."""
        return next_root(self.edition().root.signed, change, self.policy, self.now())

    def propose_delegation(self, model: str, trustees: Trustees) -> Metadata[Any]:
        """The next targets, unsigned, in which these keys speak for a family."""
        edition, now = self.edition(), self.now()
        draft = Draft(edition, self.policy, now)
        draft.delegate(model, list(trustees.keys), trustees.threshold)
        return _unsigned(draft, edition, self.policy, now)

    def propose_targets(self) -> Metadata[Any]:
        """The next targets, unsigned, that only last longer."""
        edition, now = self.edition(), self.now()
        draft = Draft(edition, self.policy, now)
        draft.change(TARGETS)
        return _unsigned(draft, edition, self.policy, now)

    def sign_here(self, document: Metadata[Any]) -> None:
        """Add the signatures of all keys at hand that have a say in a root or targets document."""
        current = self.edition().root.signed if self.exists else None
        for keyid, key in signers_of(document, current).items():
            if self.keyring.has(keyid) and keyid not in document.signatures:
                document.sign(self.keyring.signer(key), append=True)

    def accept(self, *documents: Metadata[Any]) -> None:
        """Publish a root, a targets document, or both at once: a root that changes the keys of targets needs a targets document
        by the new ones, unless they are at hand. Raises `BadMetadata` if one does not follow, or lacks signatures."""
        roots = [document for document in documents if isinstance(document.signed, Root)]
        others = [document for document in documents if not isinstance(document.signed, Root)]
        if len(roots) > 1 or len(others) > 1 or any(document.signed.type != TARGETS for document in others):
            raise BadMetadata("one root and one targets document can be published by hand, nothing else")

        def edit(draft: Draft, edition: Edition) -> None:
            root = edition.root.signed
            for document in roots:
                check_root(document, root)
                draft.accept(ROOT, document)
                root = document.signed
                draft.renew_snapshot()
            for document in others:
                check_signed(root, TARGETS, document)
                expected = edition.snapshot.signed.meta["targets.json"].version + 1
                if document.signed.version != expected:
                    raise BadMetadata(f"targets version {document.signed.version} does not follow {expected - 1}")
                draft.accept(TARGETS, document)
            if roots and not others and not _is_signed(root, TARGETS, edition.role(TARGETS)):
                draft.change(TARGETS)

        self._change(edit)

    def change_root(self, change: RootChange) -> int:
        """Make, sign and publish the next root with keys that are all at hand; its version."""
        with self.shelf.locked():
            document = self.propose_root(change)
            self._sign_root(document, self.edition().root.signed)
            self.accept(document)
        return document.signed.version

    def _sign_root(self, document: Metadata[Root], current: Root) -> None:
        self.sign_here(document)
        check_root(document, current)

    # --- the way of every change ------------------------------------------------------------------------------

    def _change(self, edit: Callable[[Draft, Edition], None], *, always: bool = False) -> None:
        with self.shelf.locked():
            self.keyring.refresh()
            edition = self.edition()
            draft = Draft(edition, self.policy, self.now())
            edit(draft, edition)
            if always or not draft.empty:
                self.shelf.publish(draft.finish(self.keyring.sign))


class _EmptyEdition(Edition):
    """Before the first: nothing is published, and everything in version 0."""

    def __init__(self, root: Metadata[Root], now: datetime) -> None:
        self.root = root
        self.timestamp = Metadata(Timestamp(version=1, expires=now))
        self.snapshot = Metadata(Snapshot(version=1, expires=now))
        self.timestamp.signed.version = self.snapshot.signed.version = 0
        self.snapshot.signed.meta = {}
        self._roles = {}


def _is_signed(delegator: Root, role: str, metadata: Metadata[Any]) -> bool:
    try:
        check_signed(delegator, role, metadata)
    except BadMetadata:
        return False
    return True


def _unsigned(draft: Draft, edition: Edition, policy: Policy, now: datetime) -> Metadata[Targets]:
    document = Metadata(draft.targets_of(TARGETS))
    known = edition.snapshot.signed.meta.get("targets.json")
    document.signed.version = known.version + 1 if known is not None else 1
    document.signed.expires = now + policy.lifetime(TARGETS)
    return document
