"""What a token does for us: make a P-256 key that never leaves it, sign, and forget keys that nobody needs.

One after the other, each with a login of its own: a token that was pulled out and put back is found again. A PIN that was wrong is not tried again
until its file has changed, nor where the token says that one more wrong one locks it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey_agent.errors import AgentError
from covey_agent.pkcs11.address import FAMILY_BYTES, ID_BYTES, Address
from covey_agent.pkcs11.key_file import POINT_BYTES

if TYPE_CHECKING:
    import pkcs11

_MAX_PIN = 256
# A process is logged in to a token once: whoever is, holds this.
alone = threading.RLock()
# Files whose PIN was wrong, as they were then.
_wrong: dict[str, tuple[int, int]] = {}


class TokenError(AgentError):
    """The PKCS#11 token cannot be used."""


def make(where: Address) -> tuple[Address, bytes]:
    """A new key of the kind that `where` wants, and its public half, uncompressed. Raises `TokenError`, as do all of these."""
    family = where.family or secrets.token_bytes(FAMILY_BYTES)
    address = where._replace(id=family + secrets.token_bytes(ID_BYTES - FAMILY_BYTES))
    with _session(address, rw=True) as session:
        import pkcs11
        from pkcs11.util.ec import encode_named_curve_parameters

        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        public, private = parameters.generate_keypair(
            store=True,
            id=address.id,
            label=address.object,
            capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
            private_template={
                pkcs11.Attribute.PRIVATE: True,
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
            },
        )
        if not _stays(private):
            private.destroy()
            public.destroy()
            raise TokenError(f"{address.words} makes keys that can be taken out of it")
        return address, _point(public[pkcs11.Attribute.EC_POINT])


def sign(address: Address, digest: bytes) -> bytes:
    """ECDSA of the digest, in DER."""
    with _session(address) as session:
        import pkcs11
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        # More than the curve's length is not signed by ECDSA.
        raw = _key(session, address).sign(digest[:32], mechanism=pkcs11.Mechanism.ECDSA)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def holds(address: Address) -> bool:
    """Whether the key is there."""
    with _session(address) as session:
        return bool(_found(session, address))


def look(address: Address) -> str:
    """For people: where the key is, and that it stays there."""
    with _session(address) as session:
        if not _stays(_key(session, address)):
            raise TokenError(f"the key can be taken out of {address.words}")
    return f"in {address.words}, which does not give it away"


def sweep(address: Address, keep: Collection[bytes]) -> int:
    """Remove what this installation has in the token but keys with these ids; how many objects went."""
    if len(address.family) != FAMILY_BYTES:
        raise ValueError("without an id nobody knows whose keys they are")
    with _session(address, rw=True) as session:
        import pkcs11

        ours = [
            one
            for one in session.get_objects({pkcs11.Attribute.LABEL: address.object})
            if isinstance(one, pkcs11.PrivateKey | pkcs11.PublicKey)
            and len(one.id) == ID_BYTES
            and one.id.startswith(address.family)
            and one.id not in keep
        ]
        for one in ours:
            one.destroy()
        return len(ours)


def _stays(private: Any) -> bool:
    import pkcs11

    return bool(private[pkcs11.Attribute.SENSITIVE]) and not private[pkcs11.Attribute.EXTRACTABLE]


def _key(session: pkcs11.Session, address: Address) -> Any:
    found = _found(session, address)
    if not found:
        raise TokenError(f"the key is not in {address.words} any more")
    return found[0]


def _found(session: pkcs11.Session, address: Address) -> list[Any]:
    import pkcs11

    wanted = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.Attribute.ID: address.id}
    return list(session.get_objects(wanted))


def _point(value: bytes) -> bytes:
    """Of an octet string in DER; or bare, as some tokens tell it."""
    point = value[2:] if value[:2] == bytes((4, POINT_BYTES)) else value
    if len(point) != POINT_BYTES or point[0] != 4:
        raise TokenError("the token has made a key that is none on P-256")
    return point


@contextmanager
def _session(address: Address, *, rw: bool = False) -> Iterator[pkcs11.Session]:
    """Logged in. What the library throws meanwhile becomes a `TokenError`."""
    try:
        import pkcs11
        from pkcs11 import exceptions
    except ImportError as error:
        raise TokenError(
            "keys in a PKCS#11 token need the extra `pkcs11`: pip install 'covey-agent[pkcs11]'"
        ) from error
    pin, file = _pin(address)
    with alone:
        try:
            wanted = {"token_label": address.token or None, "token_serial": address.serial.encode() or None}
            token = pkcs11.lib(address.module).get_token(**wanted)
            if token.flags & (pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_LOCKED):
                raise TokenError(
                    f"{address.words} is locked, or would be by one more wrong PIN; its own tools mend that"
                )
            with token.open(rw=rw, user_pin=pin) as session:
                yield session
        except exceptions.PinIncorrect as error:
            _wrong[address.pin_source] = file
            raise TokenError(f"{address.words} does not take the PIN in {address.pin_source}") from error
        except (exceptions.PKCS11Error, RuntimeError, OSError) as error:
            words = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise TokenError(f"{address.words} cannot be used: {words}") from error


def _pin(address: Address) -> tuple[str, tuple[int, int]]:
    """And what its file is known by."""
    path = Path(address.pin_source)
    try:
        with path.open("rb") as opened:
            about = os.fstat(opened.fileno())
            found = opened.read(_MAX_PIN + 1)
        pin = found.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(
            f"the PIN in {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from error
    if about.st_mode & 0o007:
        raise TokenError(f"the PIN in {path} can be read by everybody; chmod o= {path}")
    if not pin or len(found) > _MAX_PIN:
        raise TokenError(f"{path} holds no PIN of 1 to {_MAX_PIN} bytes")
    file = (about.st_mtime_ns, about.st_ino)
    if _wrong.get(address.pin_source) == file:
        raise TokenError(f"{address.words} has not taken the PIN in {path}; it is not tried again until that changes")
    return pin, file
