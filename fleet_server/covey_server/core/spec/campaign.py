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
from covey_server.core.spec.gates import Gates
from covey_server.core.spec.values import (
    Devices,
    Duration,
    GroupName,
    Name,
    Names,
    Share,
    Strict,
    decode_hook,
    encode_hook,
    span,
)

MAX_STAGES = 50

Objective = Literal["rank", "latency", "accuracy", "size"]
OnBreach = Literal["pause", "halt", "rollback"]


class Target(Strict, frozen=True, kw_only=True):
    """The devices of these groups, and these devices."""

    groups: Names = ()
    devices: Devices = ()


class Stage(Strict, frozen=True, kw_only=True):
    """Exactly one of `group`, `percent` and `count` says who; the last two are cumulative, of the whole target."""

    name: Name
    group: GroupName | None = None
    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = None
    soak: Duration = span(0)


class ProbationSpec(Strict, frozen=True, kw_only=True):
    """When a device goes back by itself; as `covey_contract.messages.Probation`."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    max_errors: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 3
    max_slowdown: Annotated[float, msgspec.Meta(gt=1, le=1000)] | None = None
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50


class CampaignSpec(Strict, frozen=True, kw_only=True):
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
    settle: Duration = span(3000)  # after a swap, before its measurements count
    gates: Gates = Gates()
    on_breach: OnBreach = "rollback"
    probation: ProbationSpec = ProbationSpec()
    assignment_ttl: Duration = span(7 * 86_400_000)


def parse_spec(data: str | bytes, *, is_json: bool = False) -> CampaignSpec:
    """Raises `DocumentError`, which names line and field."""
    return read_spec(data, is_json=is_json)[0]


def read_spec(data: str | bytes, *, is_json: bool = False) -> tuple[CampaignSpec, Document]:
    """As `parse_spec`, with the document, for complaints that come later: a group that is not there."""
    document = parse(data, is_json=is_json)
    if not isinstance(document.value, dict):
        raise document.error((), "a campaign file is a mapping: name, model, version, stages …")
    try:
        spec = msgspec.convert(document.value, CampaignSpec, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise _located(document, str(error)) from error
    _check(spec, document.error)
    return spec, document


def spec_to_json(spec: CampaignSpec) -> dict[str, Any]:
    """Plain values, defaults written out; `spec_from_json` reads them back."""
    plain: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=encode_hook)
    return plain


def spec_from_json(plain: dict[str, Any]) -> CampaignSpec:
    """What `spec_to_json` wrote. Raises `DocumentError` if it is not that."""
    try:
        return msgspec.convert(plain, CampaignSpec, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from error


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
