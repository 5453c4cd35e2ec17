"""The campaign file: what goes where, in which stages, judged by which gates. See `CampaignSpec` for the grammar.

It is strict: an unknown field, a number where a word belongs, a duration that is none is refused, naming line and field.

>>> parse_spec("name: a\\nmodel: digits\\nversion: '1.1'\\nstages:\\n  - {name: all, percent: 100, soak: 15x}\\n")
Traceback (most recent call last):
covey_server.core.document.DocumentError: line 5: stages[0].soak: '15x' is not a duration (15s, 10m, 2h, 7d)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from covey_contract.manifest import ModelName, VersionName
from covey_server.core.document import Document, DocumentError, Path, parse

MAX_STAGES = 50
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

Objective = Literal["rank", "latency", "accuracy", "size"]
OnBreach = Literal["pause", "halt", "rollback"]
Measure = Literal["end_to_end", "compute"]


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


def _default(ms: int) -> Any:
    """A factory: a plain default would have to stand in the JSON schema, where msgspec cannot write a `Duration`."""
    return msgspec.field(default_factory=lambda: Duration(ms))


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing in a campaign file is ignored."""


class Target(_Strict, frozen=True, kw_only=True):
    """The devices of these groups, and these devices."""

    groups: Names = ()
    devices: Devices = ()


class Stage(_Strict, frozen=True, kw_only=True):
    """Exactly one of `group`, `percent` and `count` says who; the last two are cumulative, of the whole target."""

    name: Name
    group: GroupName | None = None
    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = None
    soak: Duration = _default(0)


class InstallGate(_Strict, frozen=True, kw_only=True):
    """Breached by more failed devices than `max_count`, or than `max_rate` of the stage's devices."""

    max_rate: Rate = 0.1
    max_count: Annotated[int, msgspec.Meta(ge=0)] | None = None


class ErrorGate(_Strict, frozen=True, kw_only=True):
    """Breached by a higher share of requests that the new build failed, if it is also higher than before the swap."""

    max_rate: Rate
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 50


class LatencyGate(_Strict, frozen=True, kw_only=True):
    """Each device's quantile after the swap against its own before: breached beyond `max_ratio` *and* `min_increase_ms`; or
    beyond `max_ms`, where that is given."""

    quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99
    max_ratio: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 1.5
    min_increase_ms: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 2.0
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 100
    measure: Measure = "end_to_end"
    max_ms: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None


class Gates(_Strict, frozen=True, kw_only=True):
    """A gate that is not named is not judged, but for install failures, which always are."""

    install_failures: InstallGate = InstallGate()
    errors: ErrorGate | None = None
    latency: LatencyGate | None = None


class ProbationSpec(_Strict, frozen=True, kw_only=True):
    """When a device goes back by itself; as `covey_contract.messages.Probation`."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    max_errors: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 3
    max_slowdown: Annotated[float, msgspec.Meta(gt=1, le=1000)] | None = None
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50


class CampaignSpec(_Strict, frozen=True, kw_only=True):
    """A whole campaign file."""

    name: Name
    model: ModelName
    version: VersionName
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)]
    target: Target = Target(groups=("all",))
    exclude: Target = Target()
    objective: Objective = "rank"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] | None = (
        None  # of the draw; None: the server draws and records one
    )
    min_reached: Share = 0.5  # of a stage's devices, before it may pass
    settle: Duration = _default(3000)  # after a swap, before its measurements count
    gates: Gates = Gates()
    on_breach: OnBreach = "rollback"
    probation: ProbationSpec = ProbationSpec()
    assignment_ttl: Duration = _default(7 * 86_400_000)


def parse_spec(data: str | bytes, *, is_json: bool = False) -> CampaignSpec:
    """Raises `DocumentError`, which names line and field."""
    return read_spec(data, is_json=is_json)[0]


def read_spec(data: str | bytes, *, is_json: bool = False) -> tuple[CampaignSpec, Document]:
    """As `parse_spec`, with the document, for complaints that come later: a group that is not there."""
    document = parse(data, is_json=is_json)
    if not isinstance(document.value, dict):
        raise document.error((), "a campaign file is a mapping: name, model, version, stages …")
    try:
        spec = msgspec.convert(document.value, CampaignSpec, dec_hook=_decode_hook)
    except msgspec.ValidationError as error:
        raise _located(document, str(error)) from error
    _check(spec, document.error)
    return spec, document


def spec_to_json(spec: CampaignSpec) -> dict[str, Any]:
    """Plain values, defaults written out; `spec_from_json` reads them back."""
    plain: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=_encode_hook)
    return plain


def spec_from_json(plain: dict[str, Any]) -> CampaignSpec:
    """What `spec_to_json` wrote. Raises `DocumentError` if it is not that."""
    try:
        return msgspec.convert(plain, CampaignSpec, dec_hook=_decode_hook)
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from error


def _decode_hook(kind: type, value: object) -> Duration:
    if kind is Duration:
        return parse_duration(value)
    raise TypeError(f"{kind} is not known here")


def _encode_hook(value: object) -> str:
    if isinstance(value, Duration):
        return str(value)
    raise TypeError(f"{type(value)} is not known here")


def _check(spec: CampaignSpec, error: Callable[[Path, str], DocumentError]) -> None:
    """What the types cannot say."""
    if not (spec.target.groups or spec.target.devices):
        raise error(("target",), "names neither groups nor devices")
    seen: set[str] = set()
    percent, count = 0.0, 0
    for index, stage in enumerate(spec.stages):
        here = ("stages", index)
        who = [name for name in ("group", "percent", "count") if getattr(stage, name) is not None]
        if len(who) != 1:
            raise error(here, f"needs exactly one of group, percent and count; this has {', '.join(who) or 'none'}")
        if stage.name in seen:
            raise error((*here, "name"), f"a stage named {stage.name!r} comes earlier")
        seen.add(stage.name)
        if stage.percent is not None:
            if stage.percent <= percent:
                raise error((*here, "percent"), f"{stage.percent:g} is not more than {percent:g} of an earlier stage")
            percent = stage.percent
        if stage.count is not None:
            if stage.count <= count:
                raise error((*here, "count"), f"{stage.count} is not more than {count} of an earlier stage")
            count = stage.count


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_EXPECTED = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")


def _located(document: Document, text: str) -> DocumentError:
    """msgspec's complaint, in words, with the line of what it is about."""
    message, _, place = text.partition(" - at `")
    path = _path(place.rstrip("`"))
    if match := _UNKNOWN.match(message):
        return document.error((*path, match["field"]), "is not a field known here")
    if match := _MISSING.match(message):
        return document.error((*path, match["field"]), "is missing")
    value = _value_at(document.value, path)
    if (match := _EXPECTED.match(message)) and match["want"].startswith("str") and isinstance(value, int | float):
        return document.error(path, f'{value} is a number; write "{value}" in quotes')
    return document.error(path, f"{message[:1].lower()}{message[1:]}".replace("`", ""))


def _path(place: str) -> Path:
    """`$.stages[1].soak` as `("stages", 1, "soak")`."""
    return tuple(
        int(index) if index else name
        for name, index in re.findall(r"\.([A-Za-z_]+)|\[(\d+)\]", place.removeprefix("$"))
    )


def _value_at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value
