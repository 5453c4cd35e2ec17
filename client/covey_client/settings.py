"""Which server, and whose token: from options, the server's data folder, the environment, or what `covey login` stored.

A stored token is only ever sent to the server it was stored for, and only that server is checked against the stored CA.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covey_client.errors import ClientError
from covey_client.transport import check_url, trusting

SERVER_VARIABLE = "COVEY_SERVER"
TOKEN_VARIABLE = "COVEY_TOKEN"  # noqa: S105  # the name of a variable
CA_VARIABLE = "COVEY_CA"
CONFIG_VARIABLE = "COVEY_CONFIG"
_FILE = "client.json"
_MAX_BYTES = 64 * 1024


class SettingsError(ClientError):
    """It is not known which server to talk to."""


@dataclass(frozen=True)
class Account:
    """A server and, if there are any, the token to use there and the CA (a file in PEM) that its https is checked against."""

    url: str
    token: str | None
    ca: Path | None = None


def find_account(
    environment: Mapping[str, str],
    *,
    server: str | None = None,
    token_file: Path | None = None,
    data: Path | None = None,
    ca: Path | None = None,
) -> Account:
    """Options first, then the data folder, the environment, the stored login. Raises `SettingsError`."""
    stored = read_stored(environment)
    folder = _from_data(data) if data is not None else None
    url = (
        server
        or (folder.url if folder else None)
        or environment.get(SERVER_VARIABLE)
        or (stored.url if stored else None)
    )
    if not url:
        raise SettingsError(f"no server: log in with `covey login URL`, or give --server, --data or {SERVER_VARIABLE}")
    url = check_url(url)
    ca = ca or (folder.ca if folder else None) or find_ca(environment, url, stored)
    if token_file is not None:
        return Account(url, read_token(token_file), ca)
    if folder is not None:
        return Account(url, folder.token, ca)
    token = environment.get(TOKEN_VARIABLE) or (stored.token if stored and stored.url == url else None)
    return Account(url, token, ca)


def find_ca(environment: Mapping[str, str], url: str, stored: Account | None) -> Path | None:
    """The environment's CA, else the one that was stored for this very server."""
    if variable := environment.get(CA_VARIABLE):
        return Path(variable)
    return stored.ca if stored is not None and stored.url == url else None


def config_folder(environment: Mapping[str, str]) -> Path:
    if folder := environment.get(CONFIG_VARIABLE):
        return Path(folder)
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "covey"


def read_stored(environment: Mapping[str, str]) -> Account | None:
    """What `covey login` stored; None if nothing. Raises `SettingsError` if it cannot be read."""
    path = config_folder(environment) / _FILE
    try:
        document = json.loads(_read(path))
        name = document.get("ca")
        ca = None if name is None else path.parent / Path(str(name)).name
        return Account(check_url(str(document["url"])), str(document["token"]), ca)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, ClientError) as error:
        raise SettingsError(f"{path} is damaged; log in again with `covey login URL`") from error


def store(environment: Mapping[str, str], account: Account) -> Path:
    """Keep a login for this user alone (0600), with a copy of its CA, whole or not at all; where it is kept."""
    folder = config_folder(environment)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    document: dict[str, str | None] = {"url": account.url, "token": account.token}
    if account.ca is not None:
        trusting(account.ca)  # what is no CA is not kept
        pem = account.ca.read_bytes()
        # Named by its content, so that the login before stays whole until the new one is.
        document["ca"] = f"ca-{hashlib.sha256(pem).hexdigest()[:16]}.pem"
        _write(folder / str(document["ca"]), pem)
    path = folder / _FILE
    _write(path, json.dumps(document).encode())
    for other in folder.glob("ca-*.pem"):
        if other.name != document.get("ca"):
            other.unlink(missing_ok=True)
    return path


def _write(path: Path, content: bytes) -> None:
    # mkstemp makes a file of mode 0600.
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_token(path: Path) -> str:
    token = _read(path).strip()
    if not token or any(character.isspace() or not character.isprintable() for character in token):
        raise SettingsError(f"{path} holds no token")
    return token


def _from_data(data: Path) -> Account:
    """The server that runs on this folder, its administrator's token and, where it speaks https, its CA."""
    try:
        told = json.loads(_read(data / "server.json"))
        ca = told.get("ca")
        return Account(str(told["url"]), read_token(data / "admin-token"), None if ca is None else Path(str(ca)))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{data}: no server runs on this folder ({Path(error.filename).name} is not there)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{data / 'server.json'} is damaged") from error


def _read(path: Path) -> str:
    with path.open("r", encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_BYTES)
