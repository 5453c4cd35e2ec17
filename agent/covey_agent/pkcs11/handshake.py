"""Keys of a token in Python's TLS: OpenSSL asks this module for the signature of a handshake, and gets the token's.

Python's `ssl` knows keys in files alone. OpenSSL lets a process say how its EC keys sign (`EC_KEY_set_default_method`, since 1.1; deprecated in 3.0,
there in all of 3.x): once for all contexts, so that MQTT and HTTPS need know nothing of it. A signature for the public half of a stand-in
(`key_file`) is made by the token; for all other keys it is OpenSSL's own. The functions are looked up in the very library that `ssl` is linked
with. Nothing of the interpreter's memory is touched.

There are provider and engine for PKCS#11, too: the first is in no Debian before 13, and the second cannot be reached from Python's `ssl`.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import logging

from covey_agent.errors import AgentError
from covey_agent.pkcs11 import token
from covey_agent.pkcs11.address import Address
from covey_agent.pkcs11.key_file import POINT_BYTES, address_of, point_of
from covey_agent.pkcs11.token import TokenError

log = logging.getLogger(__name__)

_Pointer = ctypes.c_void_p
_Sign = ctypes.CFUNCTYPE(
    *(
        ctypes.c_int,
        ctypes.c_int,
        _Pointer,
        ctypes.c_int,
    ),  # gives 1 or 0; takes a kind that nobody uses, digest and its length,
    *(_Pointer, ctypes.POINTER(ctypes.c_uint)),  # room for the signature, and its length,
    *(_Pointer, _Pointer, _Pointer),  # what was computed before (nothing), and the key
)
_UNCOMPRESSED = 4
_PRIME256V1 = 415
# Of a signature on P-256 in DER: what OpenSSL leaves room for.
_MAX_SIGNATURE = 72

_held: dict[bytes, Address] = {}


def hold(key_pem: bytes) -> None:
    """Have the token sign wherever this key is used, in handshakes that begin from now on. Raises `TokenError`, `ValueError` and `UsageError`."""
    _install()
    _held[point_of(key_pem)] = address_of(key_pem)


@functools.cache
def _install() -> object:
    """Once in a process. What it gives must stay: OpenSSL calls it."""
    library = _library()
    method = library.EC_KEY_METHOD_new(library.EC_KEY_OpenSSL())
    parts = [_Pointer() for _ in range(3)]  # sign, set up, and sign without DER: the last two stay
    library.EC_KEY_METHOD_get_sign(method, *(ctypes.byref(part) for part in parts))
    own = _Sign(parts[0].value or 0)

    def sign(
        kind: int,
        digest: int,
        length: int,
        room: int,
        written: ctypes._Pointer[ctypes.c_uint],
        inverse: int,
        r: int,
        key: int,
    ) -> int:
        address = _held.get(_point(library, key))
        if address is None:
            return int(own(kind, digest, length, room, written, inverse, r, key))
        signature = _signature(address, ctypes.string_at(digest, length))
        ctypes.memmove(room, signature, len(signature))
        written[0] = len(signature)
        return int(bool(signature))

    callback = _Sign(sign)
    library.EC_KEY_METHOD_set_sign(method, ctypes.cast(callback, _Pointer), parts[1], parts[2])
    library.EC_KEY_set_default_method(method)
    _check(library, method)
    return callback


def _signature(address: Address, digest: bytes) -> bytes:
    """Empty if there is none: nothing may be raised through OpenSSL."""
    try:
        signature = token.sign(address, digest)
    except AgentError as error:
        log.error("a handshake cannot be signed: %s", error)
        return b""
    except Exception:  # as above
        log.exception("a handshake cannot be signed")
        return b""
    return signature if len(signature) <= _MAX_SIGNATURE else b""


def _point(library: ctypes.CDLL, key: int) -> bytes:
    """The public half, uncompressed; empty for one that is longer than a P-256 key's."""
    room = ctypes.create_string_buffer(POINT_BYTES)
    group, public = library.EC_KEY_get0_group(key), library.EC_KEY_get0_public_key(key)
    if not group or not public:
        return b""
    length = library.EC_POINT_point2oct(group, public, _UNCOMPRESSED, room, POINT_BYTES, None)
    return room.raw[:length]


def _check(library: ctypes.CDLL, method: int) -> None:
    """A key that is made now is asked for its method: is it ours?"""
    key = library.EC_KEY_new_by_curve_name(_PRIME256V1)
    try:
        if not key or library.EC_KEY_get_method(key) != method:
            raise TokenError("this Python's OpenSSL does not let keys be elsewhere")
    finally:
        library.EC_KEY_free(key)


def _library() -> ctypes.CDLL:
    """OpenSSL, the one that `ssl` uses: found as that finds it."""
    place = getattr(_ssl, "__file__", None)
    functions: dict[str, tuple[object, tuple[object, ...]]] = {
        "EC_KEY_OpenSSL": (_Pointer, ()),
        "EC_KEY_METHOD_new": (_Pointer, (_Pointer,)),
        "EC_KEY_METHOD_get_sign": (None, (_Pointer,) * 4),
        "EC_KEY_METHOD_set_sign": (None, (_Pointer,) * 4),
        "EC_KEY_set_default_method": (None, (_Pointer,)),
        "EC_KEY_get_method": (_Pointer, (_Pointer,)),
        "EC_KEY_new_by_curve_name": (_Pointer, (ctypes.c_int,)),
        "EC_KEY_free": (None, (_Pointer,)),
        "EC_KEY_get0_group": (_Pointer, (_Pointer,)),
        "EC_KEY_get0_public_key": (_Pointer, (_Pointer,)),
        "EC_POINT_point2oct": (
            ctypes.c_size_t,
            (_Pointer, _Pointer, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, _Pointer),
        ),
    }
    try:
        library = ctypes.CDLL(place)
        for name, (gives, takes) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = gives, takes
    except (OSError, AttributeError) as error:
        raise TokenError(
            f"a key in a token needs a Python whose ssl is linked with OpenSSL's library: {error}"
        ) from error
    return library
