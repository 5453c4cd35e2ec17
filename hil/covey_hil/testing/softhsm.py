"""Tokens in software for tests: SoftHSM's, each process with those of one configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pkcs11

from covey_agent.pkcs11.address import Address
from covey_agent.pkcs11.token import alone

_LIBRARIES = [Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")]
PIN = "27182818"
_PATIENCE_S = 10.0


def is_installed() -> bool:
    return shutil.which("softhsm2-util") is not None and any(path.exists() for path in _LIBRARIES)


def new_token(folder: Path, label: str) -> str:
    """A token by that name beside others in the folder; SoftHSM's configuration by which they are found (`SOFTHSM2_CONF`)."""
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    words = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "654321"]
    environment = {**os.environ, "SOFTHSM2_CONF": str(configuration)}
    subprocess.run(words, env=environment, check=True, capture_output=True)
    return str(configuration)


@contextmanager
def tokens(folder: Path, number: int) -> Iterator[Sequence[str]]:
    """Labels of so many empty tokens. SoftHSM looks for what there is when it is first used: all are made before."""
    labels = [f"token {one}" for one in range(number)]
    before = os.environ.get("SOFTHSM2_CONF")
    for label in labels:
        os.environ["SOFTHSM2_CONF"] = new_token(folder, label)
    try:
        yield labels
    finally:
        pkcs11.lib(_library()).finalize()
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


def address(label: str, pin: Path) -> Address:
    """For keys in that token; the PIN's file is written."""
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    return Address(label, "", "press", b"", _library(), str(pin))


def objects(where: Address) -> list[tuple[str, bytes]]:
    """What the token holds: kind and id. While another one changes it, SoftHSM may not be able to tell: it is looked again."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with alone, pkcs11.lib(where.module).get_token(token_label=where.token).open(user_pin=PIN) as session:
                return sorted((type(one).__name__, one[pkcs11.Attribute.ID]) for one in session.get_objects())
        except pkcs11.exceptions.PKCS11Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def ids(where: Address) -> set[bytes]:
    return {key for _, key in objects(where)}


def _library() -> str:
    return str(next(path for path in _LIBRARIES if path.exists()))
