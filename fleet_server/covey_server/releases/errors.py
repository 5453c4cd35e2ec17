"""What the repository of releases cannot do, by whose fault."""

from __future__ import annotations

from covey_server.errors import Conflict, ServerError


class KeysMissing(Conflict):
    """Not enough of the role's keys are at hand to sign."""

    code = "keys_missing"


class BadMetadata(Conflict):
    """This metadata cannot follow the one that is published."""

    code = "bad_metadata"


class RepositoryDamaged(ServerError):
    """The repository's files on disk are not what was published."""

    code = "repository_damaged"
