"""What is published: one edition of the repository, read from its timestamp down. Roles are parsed when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tuf.api.metadata import Key, Metadata, Role, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from covey_server.errors import NotFound
from covey_server.releases.errors import RepositoryDamaged
from covey_server.releases.policy import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, model_of, publisher_role
from covey_server.releases.shelf import metadata_name

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


class Edition:
    """Never changed once it is made. `read` gives a metadata file's bytes by its name; raises `NotFound`."""

    def __init__(self, read: Callable[[str], bytes], root_version: int) -> None:
        self._read = read
        self.root = self._load(Root, ROOT, root_version)
        self.timestamp = self._load(Timestamp, TIMESTAMP, 0)
        self.snapshot = self._load(Snapshot, SNAPSHOT, self.timestamp.signed.snapshot_meta.version)
        self._roles: dict[str, Metadata[Targets]] = {}

    def _load(self, kind: type[S], role: str, version: int) -> Metadata[S]:
        name = metadata_name(role, version)
        try:
            metadata: Metadata[Any] = Metadata.from_bytes(self._read(name))
        except (NotFound, DeserializationError) as error:
            raise RepositoryDamaged(f"the repository's {name} cannot be read: {error}") from error
        if not isinstance(metadata.signed, kind):
            raise RepositoryDamaged(f"the repository's {name} is of type {metadata.signed.type}")
        return metadata

    def role(self, name: str) -> Metadata[Targets]:
        """Targets metadata by its role's name. Raises `RepositoryDamaged`, `KeyError` for an unknown role."""
        if name not in self._roles:
            version = self.snapshot.signed.meta[f"{name}.json"].version
            self._roles[name] = self._load(Targets, name, version)
        return self._roles[name]

    def take_over(self, old: Edition) -> None:
        """What was parsed already and has not changed."""
        for name, metadata in old._roles.items():
            known = self.snapshot.signed.meta.get(f"{name}.json")
            if known is not None and known.version == metadata.signed.version:
                self._roles[name] = metadata

    def delegated_roles(self) -> list[str]:
        """Targets and all below it that somebody delegates to: what a client may come to read."""
        found = [TARGETS]
        delegations = self.role(TARGETS).signed.delegations
        for publisher in (delegations.roles or {}) if delegations is not None else {}:
            found.append(publisher)
            found.extend(bins_of(self.role(publisher).signed))
        return found

    def role_names(self) -> list[str]:
        """Of all targets metadata, those that nothing delegates to any longer among them."""
        return [name.removesuffix(".json") for name in self.snapshot.signed.meta]

    def metadata(self, role: str) -> Metadata[Any]:
        top: dict[str, Metadata[Any]] = {ROOT: self.root, TIMESTAMP: self.timestamp, SNAPSHOT: self.snapshot}
        return top.get(role) or self.role(role)

    def delegation(self, role: str) -> tuple[Role, dict[str, Key]]:
        """Who may sign a role: its entry in its delegator, and the delegator's keys. Raises `KeyError` if nobody delegates to it."""
        root = self.root.signed
        if role in root.roles:
            return root.roles[role], root.keys
        model = model_of(role)
        if model is None:
            raise KeyError(role)
        delegator = TARGETS if role == publisher_role(model) else publisher_role(model)
        delegations = self.role(delegator).signed.delegations
        if delegations is None or delegations.roles is None:
            raise KeyError(role)
        return delegations.roles[role], delegations.keys

    def is_delegated(self, role: str) -> bool:
        try:
            self.delegation(role)
        except KeyError:
            return False
        return True

    def family(self, model: str) -> list[str]:
        """The roles in which a family's targets stand: its bins, or its own."""
        return bins_of(self.role(publisher_role(model)).signed) or [publisher_role(model)]

    def targets(self, model: str) -> Iterator[tuple[str, TargetFile]]:
        """All targets of a family by their paths; none where it is not delegated."""
        if self.is_delegated(publisher_role(model)):
            for role in self.family(model):
                yield from self.role(role).signed.targets.items()

    def files(self) -> set[str]:
        """The names of all metadata files that this edition consists of."""
        names = {metadata_name(role, self.snapshot.signed.meta[f"{role}.json"].version) for role in self.role_names()}
        top: list[tuple[str, Signed]] = [(ROOT, self.root.signed), (SNAPSHOT, self.snapshot.signed)]
        return names | {metadata_name(role, signed.version) for role, signed in top} | {"timestamp.json"}


def bins_of(publisher: Targets) -> list[str]:
    """The roles of its bins; none where its targets stand in itself."""
    if publisher.delegations is None or publisher.delegations.roles is None:
        return []
    return list(publisher.delegations.roles)
