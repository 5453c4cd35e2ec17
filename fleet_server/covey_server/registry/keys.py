"""The server's signing keys: `release` signs manifests, `director` signs assignments, commands and the time.

Two keys on purpose: a director alone cannot make a device run bytes that no release key has signed. These are development
keys, made at the first start and kept in the data folder, readable by its owner alone.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from covey_contract.envelope import Envelope
from covey_contract.manifest import MANIFEST_TYPE
from covey_contract.messages import ASSIGNMENT_TYPE, COMMAND_TYPE, TIME_TYPE, Assignment, Command, TimeReply
from covey_contract.signing import Trust, key_id, public_key, seal, seal_bytes
from covey_server.errors import StartError
from covey_server.fleet.durable import write_durably

log = logging.getLogger(__name__)


class SigningKeys:
    """Use `load_or_create`; the constructor only stores."""

    def __init__(self, release: Ed25519PrivateKey, director: Ed25519PrivateKey) -> None:
        self._release = release
        self._director = director
        self.trust = Trust(release=(public_key(release),), director=(public_key(director),))

    @classmethod
    def load_or_create(cls, folder: Path) -> SigningKeys:
        """Raises `StartError` if a key cannot be read, `OSError` if it cannot be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(_key(folder / "release.pem"), _key(folder / "director.pem"))

    def sign_manifest(self, manifest: bytes) -> Envelope:
        """The exact bytes of a manifest in the release key's envelope."""
        return seal_bytes(manifest, MANIFEST_TYPE, [self._release])

    def sign_assignment(self, assignment: Assignment) -> Envelope:
        return seal(assignment, ASSIGNMENT_TYPE, [self._director])

    def sign_time(self, reply: TimeReply) -> Envelope:
        return seal(reply, TIME_TYPE, [self._director])

    def sign_command(self, command: Command) -> Envelope:
        return seal(command, COMMAND_TYPE, [self._director])


def _key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        log.warning(
            "made a DEVELOPMENT signing key for the role %s (%s…): it lies unprotected in the data folder; "
            "every device that enrols will trust it",
            path.stem,
            key_id(public_key(key))[:12],
        )
        return key
    try:
        loaded = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise StartError(f"the signing key {path} cannot be read: {error}") from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise StartError(f"{path} holds no Ed25519 key")
    return loaded
