"""Which server, and whose token: from options, the server's data folder, the environment, or what `covey login` stored.

A stored token is only ever sent to the server it was stored for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covey_client.errors import ClientError
from covey_client.transport import check_url

SERVER_VARIABLE = "COVEY_SERVER"
TOKEN_VARIABLE = "COVEY_TOKEN"  # noqa: S105  # the name of a variable
CONFIG_VARIABLE = "COVEY_CONFIG"
_FILE = "client.json"
_MAX_BYTES = 64 * 1024


class SettingsError(ClientError):
    """It is not known which server to talk to."""


@dataclass(frozen=True)
class Account:
    """A server and, if there is one, the token to use there."""

    url: str
    token: str | None


def find_account(
    environment: Mapping[str, str],
    *,
    server: str | None = None,
    token_file: Path | None = None,
    data: Path | None = None,
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
    if token_file is not None:
        return Account(url, read_token(token_file))
    if folder is not None:
        return Account(url, folder.token)
    token = environment.get(TOKEN_VARIABLE) or (stored.token if stored and stored.url == url else None)
    return Account(url, token)


def config_folder(environment: Mapping[str, str]) -> Path:
    if folder := environment.get(CONFIG_VARIABLE):
        return Path(folder)
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "covey"


def read_stored(environment: Mapping[str, str]) -> Account | None:
    """What `covey login` stored; None if nothing. Raises `SettingsError` if it cannot be read."""
    path = config_folder(environment) / _FILE
    try:
        document = json.loads(_read(path))
        return Account(check_url(str(document["url"])), str(document["token"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ClientError) as error:
        raise SettingsError(f"{path} is damaged; log in again with `covey login URL`") from error


def store(environment: Mapping[str, str], account: Account) -> Path:
    """Keep a login for this user alone (0600), whole or not at all; where it is kept."""
    folder = config_folder(environment)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / _FILE
    # mkstemp makes a file of mode 0600.
    number, temporary = tempfile.mkstemp(dir=folder, prefix=f".{_FILE}.")
    try:
        with os.fdopen(number, "w") as file:
            json.dump({"url": account.url, "token": account.token}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def read_token(path: Path) -> str:
    token = _read(path).strip()
    if not token or any(character.isspace() or not character.isprintable() for character in token):
        raise SettingsError(f"{path} holds no token")
    return token


def _from_data(data: Path) -> Account:
    """The server that runs on this folder, and its administrator's token."""
    try:
        url = str(json.loads(_read(data / "server.json"))["url"])
        return Account(url, read_token(data / "admin-token"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{data}: no server runs on this folder ({Path(error.filename).name} is not there)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{data / 'server.json'} is damaged") from error


def _read(path: Path) -> str:
    with path.open("r", encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_BYTES)
