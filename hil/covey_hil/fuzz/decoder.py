"""What is fuzzed: one decoder, what good input looks like, and how it may say no.

Whatever else comes out of it is a finding: another exception, an end of the process, more time or memory than an input may take.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Form(enum.Enum):
    """How inputs are bent: trees field by field too, bytes as bytes."""

    JSON = "json"
    MSGPACK = "msgpack"
    TEXT = "text"
    BYTES = "bytes"


class Share(enum.IntEnum):
    """Of the inputs, by what one costs."""

    CHEAP = 32  # some microseconds
    MIDDLE = 16  # a tenth of a millisecond
    DEAR = 2  # milliseconds


@dataclass(frozen=True)
class Made:
    """Ready to be given inputs. `seeds` are good ones (or nearly so), at least one."""

    decode: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


@dataclass(frozen=True)
class Decoder:
    """`name` is `ROOM.WHAT`; `sender`: whose bytes these are. `make` is called in the process that fuzzes, with a folder of its own.
    `code`: the modules whose lines are counted. `confined`: it runs a library in native code, in a process whose end is foreseen
    and becomes a report (covey_converters.isolation); an end is counted then, and no finding."""

    name: str
    sender: str
    make: Callable[[Path], Made]
    refuses: tuple[type[Exception], ...]
    code: tuple[str, ...]
    form: Form = Form.JSON
    share: Share = Share.CHEAP
    longest: int = 8192  # bytes of an input
    confined: bool = False
