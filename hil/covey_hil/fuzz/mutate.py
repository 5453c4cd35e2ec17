"""New inputs out of old ones: a few bytes changed, cut, doubled or crossed with another's, or a value in a tree put in another's place.

Pure: the randomness is handed in, so that a seed gives the same inputs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from covey_hil.fuzz.decoder import Form

# What has broken parsers: ends of ranges, other types, names that paths and formats take for something else.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 3.4e38),
    *(
        "",
        "\0",
        "a",
        "0",
        "-1",
        "nan",
        "x" * 300,
        "ü\ud7ff\U0001f600",
        "../../etc/passwd",
        "/",
        "a/b",
        "%s%n",
        "1" * 64,
        "a" * 64,
    ),
    *([], {}, [[]], [None], {"": None}, [0] * 40, {"v": 2}),
)
_TOKENS = (
    *(b"", b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\r\n\r\n", b"../", b"//", b"%00"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"1e999", b"0x", b"[[[[", b"{{{{", b"[" * 3000, b'{"a":' * 1500, b"\\u0000", b"\\ud800", b'"', b"'", b"1" * 40),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"BZh9", b"x\x9c", b"&a", b"*a", b"!!python/object:", b": ", b"- "),
)  # fmt: skip
_TREE_SHARE = 0.65
_MOST_AT_ONCE = 4


class Mutator:
    """Inputs of one form, of at most `longest` bytes."""

    def __init__(self, form: Form, longest: int, random: Random) -> None:
        self._longest = longest
        self._random = random
        self._codec = _CODECS.get(form)

    def next(self, corpus: Sequence[bytes]) -> bytes:
        """One more, made of one or two of these."""
        data = self._random.choice(corpus)
        if self._codec is not None and self._random.random() < _TREE_SHARE:
            made = self._tree(data, corpus)
            if made is not None:
                return made[: self._longest]
        buffer = bytearray(data)
        for _ in range(self._random.randint(1, _MOST_AT_ONCE)):
            self._bytes(buffer, corpus)
        return bytes(buffer[: self._longest])

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _bytes(self, buffer: bytearray, corpus: Sequence[bytes]) -> None:
        random = self._random
        at = random.randrange(len(buffer) + 1)
        match random.randrange(9):
            case 0 if at < len(buffer):
                buffer[at] ^= 1 << random.randrange(8)
            case 1 if at < len(buffer):
                buffer[at] = random.randrange(256)
            case 2:
                buffer[at : at + random.choice((0, 1, 4))] = random.choice(_TOKENS)
            case 3:
                del buffer[at : at + random.choice((1, 1, 2, 8, 64))]
            case 4:
                del buffer[at:]
            case 5:
                piece = buffer[at : at + random.choice((1, 4, 16, 64))]
                buffer[at:at] = piece * random.choice((1, 2, 30))
            case 6:
                other = random.choice(corpus)
                start = random.randrange(len(other) + 1)
                buffer[at:] = other[start:]
            case 7:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, (1 << (8 * size)) - 1, 1 << (8 * size - 1), len(buffer))
                )
                number = (number + random.choice((-1, 0, 0, 1))) % (1 << (8 * size))
                buffer[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            case _:
                buffer[at:at] = random.randbytes(random.choice((1, 1, 2, 8)))

    # --- trees --------------------------------------------------------------------------------------------------------

    def _tree(self, data: bytes, corpus: Sequence[bytes]) -> bytes | None:
        """None: the input is no tree, or cannot be written as one any longer."""
        read, write = self._codec or _CODECS[Form.JSON]
        try:
            tree = read(data)
            places = _places(tree)
            if not places:
                return None
            for _ in range(self._random.randint(1, 2)):
                self._bend(*self._random.choice(places), corpus, read)
            return write(tree)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, TypeError):
            return None

    def _bend(self, holder: Any, key: Any, corpus: Sequence[bytes], read: Callable[[bytes], Any]) -> None:
        random = self._random
        what = random.randrange(6)
        if key not in holder if isinstance(holder, dict) else key >= len(holder):
            return  # an earlier step took it away
        if what == 0:
            del holder[key]
        elif what == 1:
            self._double(holder, key)
        elif what == 2 and (others := _places(read(random.choice(corpus)))):
            other, place = random.choice(others)
            holder[key] = other[place]
        elif what == 3 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] + random.choice((-1, 1)) if random.random() < 0.5 else holder[key] * -2
        elif what == 4 and isinstance(holder[key], str):
            text = bytearray(holder[key].encode())
            self._bytes(text, corpus)
            holder[key] = text.decode("utf-8", "replace")[: self._longest]
        else:
            holder[key] = random.choice(VALUES)

    def _double(self, holder: Any, key: Any) -> None:
        if isinstance(holder, list):
            holder[key:key] = [holder[key]] * self._random.choice((1, 2, 20))
        else:
            holder[f"{key}{self._random.choice(('', 'x', chr(0)))}"] = holder[key]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        pairs = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in pairs:
            found.append((one, key))
            if isinstance(value, (dict, list)):
                waiting.append(value)
    return found


_CODECS: dict[Form, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    Form.JSON: (msgspec.json.decode, msgspec.json.encode),
    Form.MSGPACK: (msgspec.msgpack.decode, msgspec.msgpack.encode),
}
