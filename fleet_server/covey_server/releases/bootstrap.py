"""The repository at the server's start: opened, made with development keys if it is new, or refused."""

from __future__ import annotations

import logging
from pathlib import Path

from covey_server.clock import Clock
from covey_server.errors import EXIT_SETTINGS, ServerError, StartError
from covey_server.registry.keys import SigningKeys
from covey_server.releases.ceremony import Trustees, director_key
from covey_server.releases.keyring import Keyring, Secrets, no_secrets
from covey_server.releases.policy import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Policy
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf
from covey_server.settings import Settings

log = logging.getLogger(__name__)


def open_releases(settings: Settings, clock: Clock, keys: SigningKeys) -> Releases:
    """Raises `StartError`: in production also where there is no repository yet, or where a development key is trusted."""
    releases = releases_of(settings, clock)
    try:
        if not releases.exists:
            if settings.production:
                raise StartError(
                    f"setting production: there is no repository of releases in {settings.data}; make its keys first: "
                    "`covey-server keys ceremony --help`",
                    EXIT_SETTINGS,
                )
            create_for_development(releases, keys)
        if settings.production and (names := releases.keyring.development_keys(releases.trusted_keyids())):
            raise StartError(
                f"setting production: development keys are trusted ({', '.join(names)}); replace them by a ceremony: "
                "`covey-server keys --help`",
                EXIT_SETTINGS,
            )
        if set(releases.director_keys()).isdisjoint(keys.trust.director):
            raise StartError("the server's key for orders (director.pem) is not one that the repository's root names")
    except ServerError as error:
        raise StartError(f"the repository of releases in {releases.shelf.folder}: {error.detail}") from error
    except OSError as error:
        raise StartError(f"the repository of releases in {releases.shelf.folder}: {error.strerror or error}") from error
    return releases


def releases_of(settings: Settings, clock: Clock, secrets: Secrets | None = None) -> Releases:
    """Over the data folder, whatever is in it."""
    keyring = Keyring.load(settings.data / "keys", secrets or secrets_from(settings.key_secret_file))
    return Releases(Shelf(settings.data / "releases"), keyring, policy_of(settings), clock)


def policy_of(settings: Settings) -> Policy:
    return Policy().with_online(settings.release_timestamp_s, settings.release_snapshot_s)


def secrets_from(file: str) -> Secrets:
    """The one passphrase or PIN that the setting `key_secret_file` names a file of."""
    if not file:
        return no_secrets

    def read(what: str) -> str:
        try:
            return Path(file).read_text().strip()
        except OSError as error:
            raise ValueError(f"{what}: {file} cannot be read: {error.strerror}") from error

    return read


def create_for_development(releases: Releases, keys: SigningKeys) -> None:
    """All keys on this machine: for trying out. Said loudly; production refuses them."""
    keyring = releases.keyring

    def make(name: str, *, publishes: bool = False) -> Trustees:
        existing = keyring.named(name)  # of a first start that was cut short
        return Trustees([existing or keyring.make(name, development=True, publishes=publishes)])

    def several(role: str) -> Trustees:
        return Trustees([make(f"{role}-{number}").keys[0] for number in (1, 2, 3)], threshold=2)

    director = director_key(keys.trust.director[0])
    keyring.add(director, "director", "file:director.pem", development=True)
    make("publisher", publishes=True)
    roles = {ROOT: several(ROOT), TARGETS: several(TARGETS), SNAPSHOT: make(SNAPSHOT), TIMESTAMP: make(TIMESTAMP)}
    root, _ = releases.propose_first(roles, Trustees([director]), {})
    releases.sign_here(root)
    releases.create(root)
    log.warning(
        "made a repository of releases with DEVELOPMENT keys: all of them, those of root too, lie unprotected in %s. "
        "Whoever reads that folder can release to every device that enrols. For production: `covey-server keys ceremony`",
        keyring.folder,
    )
