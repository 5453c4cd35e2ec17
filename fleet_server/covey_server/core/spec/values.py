"""What campaign files are made of: durations, names, shares, and structs that ignore nothing."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

MAX_NAMES = 1000
MAX_DURATION_MS = 365 * 86_400_000

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"

Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
DeviceName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
GroupName = Name
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rate = Share
Names = Annotated[tuple[GroupName, ...], msgspec.Meta(max_length=MAX_NAMES)]
Devices = Annotated[tuple[DeviceName, ...], msgspec.Meta(max_length=MAX_NAMES)]


class Duration:
    """A time span, written as a whole number and a unit: 500ms, 15s, 10m, 2h, 7d. Immutable.

    A plain class, since msgspec hands over to `_decode_hook` only what it does not know itself.
    """

    __slots__ = ("_ms",)

    def __init__(self, ms: int) -> None:
        self._ms = ms

    @property
    def ms(self) -> int:
        return self._ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and other.ms == self.ms

    def __hash__(self) -> int:
        return hash(self._ms)

    def __repr__(self) -> str:
        return f"Duration({self._ms})"

    def __str__(self) -> str:
        if self.ms == 0:
            return "0s"
        unit = next(unit for unit in ("d", "h", "m", "s", "ms") if self.ms % _UNITS_MS[unit] == 0)
        return f"{self.ms // _UNITS_MS[unit]}{unit}"


def parse_duration(text: object) -> Duration:
    """Raises `ValueError` for anything but a whole number and a unit, of at most a year.

    >>> parse_duration("10m").ms
    600000
    """
    match = re.fullmatch(r"(\d{1,12})(ms|s|m|h|d)", text, re.ASCII) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration (15s, 10m, 2h, 7d)")
    ms = int(match[1]) * _UNITS_MS[match[2]]
    if ms > MAX_DURATION_MS:
        raise ValueError(f"{text!r} is longer than a year")
    return Duration(ms)


def span(ms: int) -> Any:
    """A factory: a plain default would have to stand in the JSON schema, where msgspec cannot write a `Duration`."""
    return msgspec.field(default_factory=lambda: Duration(ms))


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing in a campaign file is ignored."""


def decode_hook(kind: type, value: object) -> Duration:
    """For `msgspec.convert`."""
    if kind is Duration:
        return parse_duration(value)
    raise TypeError(f"{kind} is not known here")


def encode_hook(value: object) -> str:
    """For `msgspec.to_builtins`."""
    if isinstance(value, Duration):
        return str(value)
    raise TypeError(f"{type(value)} is not known here")
