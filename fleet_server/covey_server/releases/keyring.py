"""Where the private keys are. Whom the repository *trusts* stands in root and targets; this only finds the signer of a trusted key.

`keyring.json` maps key ids to addresses of private keys:

- `file:NAME.pem`, a PKCS#8 file beside it, perhaps under a passphrase;
- `hsm:ID?label=TOKEN`, PKCS#11 (`PYKCS11LIB` names the library);
- `awskms:…`, `gcpkms:…`, `azurekms:…`, `hv:…`: key management services, by securesystemslib and its extras.

A passphrase or PIN comes from the `secrets` function, never from a file of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import (
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
    VaultSigner,
)
from tuf.api.metadata import Metadata, Role

from covey_server.errors import StartError
from covey_server.fleet.durable import write_durably
from covey_server.releases.errors import BadMetadata, KeysMissing

log = logging.getLogger(__name__)

KEYRING_FILE = "keyring.json"
Secrets = Callable[[str], str]


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One private key, and its public half as metadata holds it. `development`: it was made without a ceremony and lies
    unprotected; production refuses it. `publishes`: it speaks for families of models that nobody has given a publisher."""

    name: str
    uri: str
    public: dict[str, Any]
    development: bool = False
    publishes: bool = False


class PublicKeyFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What its holder hands over for a ceremony."""

    keyid: str
    public: dict[str, Any]
    uri: str = ""


def no_secrets(what: str) -> str:
    """Where nobody can be asked."""
    raise ValueError(f"{what} is needed, and nobody is here to give it (setting key_secret_file)")


class Keyring:
    """The keys at hand, read from `folder` once."""

    def __init__(self, folder: Path, records: Mapping[str, KeyRecord], secrets: Secrets = no_secrets) -> None:
        self.folder = folder
        self._records = dict(records)
        self._secrets = secrets
        self._signers: dict[str, Signer] = {}

    @classmethod
    def load(cls, folder: Path, secrets: Secrets = no_secrets) -> Keyring:
        """Raises `StartError` for a file that cannot be read; one that is not there is an empty keyring."""
        try:
            data = (folder / KEYRING_FILE).read_bytes()
        except FileNotFoundError:
            return cls(folder, {}, secrets)
        except OSError as error:
            raise StartError(f"{folder / KEYRING_FILE} cannot be read: {error.strerror}") from error
        try:
            return cls(folder, msgspec.json.decode(data, type=dict[str, KeyRecord]), secrets)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StartError(f"{folder / KEYRING_FILE} is damaged: {error}") from error

    def refresh(self) -> None:
        """Read it again: a command beside the running server may have added a key. Raises `StartError`."""
        self._records = Keyring.load(self.folder, self._secrets)._records
        self._signers = {keyid: signer for keyid, signer in self._signers.items() if keyid in self._records}

    def record(self, keyid: str) -> KeyRecord | None:
        return self._records.get(keyid)

    def publishers(self) -> list[Key]:
        """The keys that speak for new families."""
        return [Key.from_dict(keyid, deepcopy(one.public)) for keyid, one in self._records.items() if one.publishes]

    def named(self, name: str) -> Key | None:
        for keyid, record in self._records.items():
            if record.name == name:
                return Key.from_dict(keyid, deepcopy(record.public))
        return None

    def make(self, name: str, *, development: bool = False, publishes: bool = False) -> Key:
        """A new Ed25519 key in a file of this folder, without a passphrase. Raises `OSError`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = f"{name}.pem"
        key = make_key_file(self.folder / file, None)
        self.add(key, name, f"file:{file}", development=development, publishes=publishes)
        return key

    def add(self, key: Key, name: str, uri: str, *, development: bool = False, publishes: bool = False) -> None:
        """Remember where a private key is. Raises `OSError`."""
        self._records[key.keyid] = KeyRecord(
            name=name, uri=uri, public=key.to_dict(), development=development, publishes=publishes
        )
        self._write()

    def drop(self, keyids: Collection[str]) -> None:
        """Forget keys that nobody trusts any longer. Their files stay: destroying them is their owner's matter."""
        if not self._records.keys().isdisjoint(keyids):
            self._records = {keyid: record for keyid, record in self._records.items() if keyid not in keyids}
            self._write()

    def development_keys(self, keyids: Collection[str]) -> list[str]:
        """The names of those that production refuses."""
        return sorted({record.name for keyid in keyids if (record := self._records.get(keyid)) and record.development})

    def has(self, keyid: str) -> bool:
        return keyid in self._records

    def signer(self, key: Key) -> Signer:
        """Raises `KeysMissing` if the private key is not at hand or cannot be used."""
        if key.keyid not in self._signers:
            record = self._records.get(key.keyid)
            if record is None:
                raise KeysMissing(f"the private key {key.keyid[:12]} is not in the keyring")
            try:
                self._signers[key.keyid] = open_signer(record.uri, key, self._secrets, self.folder)
            except Exception as error:  # noqa: BLE001 - each kind of signer raises what its library does
                raise KeysMissing(f"the key {record.name} ({record.uri}) cannot be used: {error}") from error
        return self._signers[key.keyid]

    def sign(self, role: str, metadata: Metadata[Any], entry: Role, keys: Mapping[str, Key]) -> None:
        """Sign with as many of the role's keys as it needs. Raises `KeysMissing`."""
        metadata.signatures.clear()
        troubles = []
        for keyid in entry.keyids:
            if len(metadata.signatures) >= entry.threshold:
                return
            try:
                metadata.sign(self.signer(keys[keyid]), append=True)
            except KeysMissing as error:
                troubles.append(error.detail)
            except Exception as error:  # noqa: BLE001 - a service or token that does not answer; another key may do
                troubles.append(f"the key {keyid[:12]} does not sign: {error}")
        if len(metadata.signatures) < entry.threshold:
            raise KeysMissing(
                f"{role} needs {entry.threshold} signatures and got {len(metadata.signatures)}: {'; '.join(troubles)}",
                role=role,
            )

    def _write(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = msgspec.json.format(msgspec.json.encode(self._records, order="sorted"))
        write_durably(self.folder / KEYRING_FILE, document + b"\n", 0o600)
        self._signers.clear()


def read_public(path: Path) -> tuple[Key, str]:
    """A public key's file, as `covey-server keys new` writes it: the key, and where its private half is ("" if it does not say).
    Raises `BadMetadata`."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=PublicKeyFile)
        return Key.from_dict(document.keyid, document.public), document.uri
    except OSError as error:
        raise BadMetadata(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise BadMetadata(f"{path} is no public key: {error}") from error


def write_public(path: Path, key: Key, uri: str) -> None:
    """Raises `OSError`."""
    document = PublicKeyFile(keyid=key.keyid, public=key.to_dict(), uri=uri)
    write_durably(path, msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def public_key_at(uri: str, secrets: Secrets) -> tuple[str, Key]:
    """The public half of a key in a token or a key management service, and its address in full. Raises whatever its library does,
    and `BadMetadata` for an address that it does not know."""
    scheme, _, rest = uri.partition(":")
    if scheme == HSMSigner.SCHEME:
        number, _, query = rest.partition("?")
        label = dict(parse_qsl(query)).get("label")
        return HSMSigner.import_(int(number) if number else None, label, secrets)
    if scheme == AWSSigner.SCHEME:
        return AWSSigner.import_(rest)
    if scheme == GCPSigner.SCHEME:
        return GCPSigner.import_(rest)
    if scheme == AzureSigner.SCHEME:
        vault, _, name = rest.removeprefix("//").partition(".vault.azure.net/keys/")
        return AzureSigner.import_(vault, name.split("/")[0])
    if scheme == VaultSigner.SCHEME:
        return VaultSigner.import_(rest)
    raise BadMetadata(f"{uri!r}: a key is at hsm:, awskms:, gcpkms:, azurekms: or hv:, or in a file")


def open_signer(uri: str, key: Key, secrets: Secrets, folder: Path) -> Signer:
    """The signer at an address. Raises whatever its library does."""
    if not uri.startswith("file:"):
        return Signer.from_priv_key_uri(uri, key, secrets)
    if not isinstance(key, SSlibKey):
        raise ValueError(f"a file holds no key of the kind {key.keytype}")
    return CryptoSigner(load_private_key(folder / uri.removeprefix("file:"), secrets), key)


def load_private_key(path: Path, secrets: Secrets) -> Any:
    """A PKCS#8 key, whose passphrase is asked for if it has one. Raises `OSError`, `ValueError`."""
    data = path.read_bytes()
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        return load_pem_private_key(data, secrets(f"passphrase of {path.name}").encode())


def make_key_file(path: Path, passphrase: str | None) -> Key:
    """A new Ed25519 key in a file that was not there before; its public half. Raises `OSError`."""
    private = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    if path.exists():
        raise FileExistsError(17, "it is there already", str(path))
    write_durably(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), 0o600)
    return SSlibKey.from_crypto(private.public_key())
