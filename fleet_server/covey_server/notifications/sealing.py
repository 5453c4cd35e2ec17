"""Secrets that must be had again in plain, as a webhook's key: sealed in the database by a key that lies in the data folder.

So a copy of the database alone gives nobody the means to sign. Sealed by AES-256-GCM; what it belongs to is bound in, so that a
sealed secret cannot be moved to another row.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from covey_server.fleet.durable import write_durably

FILE = "sealing-key"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class Seal:
    """Seals and opens by one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load_or_create(cls, folder: Path) -> Seal:
        """The key in `folder`, made if there is none. Raises `OSError`, and `ValueError` if the file holds no key."""
        file = folder / FILE
        if not file.exists():
            write_durably(file, secrets.token_bytes(_KEY_BYTES), 0o600)
        key = file.read_bytes()
        if len(key) != _KEY_BYTES:
            raise ValueError(f"{FILE} holds no key")
        return cls(key)

    def seal(self, secret: str, of: str) -> bytes:
        """`of` names what the secret belongs to."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), of.encode())

    def open(self, sealed: bytes, of: str) -> str:
        """Raises `ValueError` if it was sealed by another key or for something else."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], of.encode()).decode()
        except InvalidTag as error:
            raise ValueError(f"the secret of {of} was sealed by another key than the data folder's {FILE}") from error
