"""What campaign files are made of: durations, moments, rates, names, shares, and structs that ignore nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec

MAX_NAMES = 1000
MAX_DURATION_MS = 365 * 86_400_000

MAX_BYTES_PER_S = 10**12

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNITS_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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


class ByteRate:
    """Bytes a second, written as a whole number and a unit: 500kB/s, 5MB/s, 1GB/s (1 MB is 10^6 bytes). Immutable."""

    __slots__ = ("_per_s",)

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s

    @property
    def per_s(self) -> int:
        return self._per_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteRate) and other.per_s == self.per_s

    def __hash__(self) -> int:
        return hash(self._per_s)

    def __repr__(self) -> str:
        return f"ByteRate({self._per_s})"

    def __str__(self) -> str:
        unit = next(unit for unit in ("GB", "MB", "kB", "B") if self.per_s % _UNITS_BYTES[unit] == 0)
        return f"{self.per_s // _UNITS_BYTES[unit]}{unit}/s"


def parse_byte_rate(text: object) -> ByteRate:
    """Raises `ValueError` for anything but a whole number and a unit, from 1 B/s to 1000 GB/s.

    >>> parse_byte_rate("5MB/s").per_s
    5000000
    """
    match = re.fullmatch(r"(\d{1,13})(B|kB|MB|GB)/s", text, re.ASCII) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no rate in bytes (500kB/s, 5MB/s, 1GB/s)")
    per_s = int(match[1]) * _UNITS_BYTES[match[2]]
    if not 1 <= per_s <= MAX_BYTES_PER_S:
        raise ValueError(f"{text!r} is not between 1B/s and 1000GB/s")
    return ByteRate(per_s)


class Moment:
    """A point in time, written as RFC 3339 has it, with its offset: 2026-12-01T22:00:00+01:00. Immutable."""

    __slots__ = ("_ms",)

    def __init__(self, ms: int) -> None:
        self._ms = ms

    @property
    def ms(self) -> int:
        """Unix time in milliseconds."""
        return self._ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moment) and other.ms == self.ms

    def __hash__(self) -> int:
        return hash(self._ms)

    def __repr__(self) -> str:
        return f"Moment({self._ms})"

    def __str__(self) -> str:
        return (_EPOCH + timedelta(milliseconds=self._ms)).isoformat().replace("+00:00", "Z")


def parse_moment(text: object) -> Moment:
    """Raises `ValueError` for anything but a date, a time and an offset, from 1970 on.

    >>> str(parse_moment("2026-12-01T22:00:00+01:00"))
    '2026-12-01T21:00:00Z'
    """
    try:
        if not isinstance(text, str) or len(text) > 40 or not re.match(r"\d{4}-\d\d-\d\d[T ]\d", text):
            raise ValueError
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no moment (2026-12-01T22:00:00Z)") from None
    if at.tzinfo is None:
        raise ValueError(f"{text!r} does not say in which offset: add Z, or one such as +01:00")
    if at < _EPOCH:
        raise ValueError(f"{text!r} lies before 1970")
    return Moment((at - _EPOCH) // timedelta(milliseconds=1))


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing in a campaign file is ignored."""


_PARSERS: dict[type, Callable[[object], object]] = {
    Duration: parse_duration,
    ByteRate: parse_byte_rate,
    Moment: parse_moment,
}


def decode_hook(kind: type, value: object) -> object:
    """For `msgspec.convert`."""
    parse = _PARSERS.get(kind)
    if parse is None:
        raise TypeError(f"{kind} is not known here")
    return parse(value)


def encode_hook(value: object) -> str:
    """For `msgspec.to_builtins`."""
    if type(value) in _PARSERS:
        return str(value)
    raise TypeError(f"{type(value)} is not known here")


def schema_hook(kind: type) -> dict[str, Any]:
    """For `msgspec.json.schema_components`."""
    if kind is Duration:
        return {"type": "string", "pattern": r"^\d{1,12}(ms|s|m|h|d)$", "examples": ["15s", "10m", "2h", "7d"]}
    if kind is ByteRate:
        return {"type": "string", "pattern": r"^\d{1,13}(B|kB|MB|GB)/s$", "examples": ["500kB/s", "5MB/s"]}
    if kind is Moment:
        return {"type": "string", "format": "date-time", "examples": ["2026-12-01T22:00:00+01:00"]}
    raise NotImplementedError(kind)
