"""Where a key is in a token, as a `pkcs11:` address (RFC 7512).

`token` (or `serial`) says which token, `object` how its keys are called, `module-path` which library leads to it, `pin-source` which file holds its
PIN. `id` is of one key; it is ours to choose, so that a person names none.

>>> parse("pkcs11:token=line%20a?module-path=/usr/lib/x.so&pin-source=/etc/covey/pin").token
'line a'
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from covey_agent.errors import UsageError

SCHEME = "pkcs11:"
OBJECT = "covey"
# The first half of an id is an installation's, the second one key's.
FAMILY_BYTES = 8
ID_BYTES = 16
_MAX_LENGTH = 4096
_MAX_TEXT = 255
_SAFE = "/:_-.~"


class Address(NamedTuple):
    """Of a key; without `id` of those to come."""

    token: str
    serial: str
    object: str
    id: bytes
    module: str
    pin_source: str

    @property
    def family(self) -> bytes:
        """What the ids of an installation's keys begin with; nothing else of the token is touched."""
        return self.id[:FAMILY_BYTES]

    def follows(self, other: Address) -> bool:
        """Whether this is a key of the kind that `other` wants."""
        return self._replace(id=b"") == other._replace(id=b"") and self.family.startswith(other.family)

    @property
    def words(self) -> str:
        """For people."""
        return f"the PKCS#11 token {self.token or self.serial!r}"

    def __str__(self) -> str:
        path = {"token": self.token, "serial": self.serial, "object": self.object}
        parts = [f"{name}={quote(value, safe=_SAFE)}" for name, value in path.items() if value]
        if self.id:
            parts.append("id=" + "".join(f"%{byte:02x}" for byte in self.id))
        query = f"module-path={quote(self.module, safe=_SAFE)}&pin-source={quote(self.pin_source, safe=_SAFE)}"
        return f"{SCHEME}{';'.join(parts)}?{query}"


def parse(text: str) -> Address:
    """Raises `UsageError`, without repeating what may be a secret."""
    if not text.startswith(SCHEME) or len(text) > _MAX_LENGTH:
        raise UsageError("a key's address in a token is pkcs11:token=LABEL?module-path=/LIBRARY.so&pin-source=/FILE")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    found = {**_attributes(path, ";"), **_attributes(query, "&")}
    if "pin-value" in found:
        raise UsageError(
            "pkcs11: a PIN here could be read by everybody; put it into a file and name that: pin-source=/FILE"
        )
    if found.pop("type", b"private") != b"private":
        raise UsageError("pkcs11: type is private, or is left out")
    key = found.pop("id", b"")
    if len(key) not in (0, ID_BYTES):
        raise UsageError("pkcs11: id is chosen by the agent; leave it out")
    texts = {name: _text(name, value) for name, value in found.items()}
    address = Address(
        token=texts.pop("token", ""),
        serial=texts.pop("serial", ""),
        object=texts.pop("object", OBJECT),
        id=key,
        module=_file("module-path", texts.pop("module-path", "")),
        pin_source=_file("pin-source", texts.pop("pin-source", "").removeprefix("file:")),
    )
    if texts:
        raise UsageError(f"pkcs11: {min(texts)} is not understood here")
    if not (address.token or address.serial):
        raise UsageError("pkcs11: token or serial says which token it is")
    return address


def _attributes(text: str, separator: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if not equals or name in found or len(name) > 64 or not name.replace("-", "").isalnum():
            raise UsageError("pkcs11: each part is NAME=VALUE, and is there once")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > _MAX_TEXT or not text.isprintable():
        raise UsageError(f"pkcs11: {name} is no text of 1 to {_MAX_TEXT} printable characters")
    return text


def _file(name: str, value: str) -> str:
    path = "/" + value.lstrip("/")
    if not value.startswith("/") or path == "/":
        raise UsageError(f"pkcs11: {name} is the path of a file, from / on")
    return path
