"""The campaign file: what goes where, in which stages, judged by which gates. See `CampaignSpec` for the grammar.

It is strict: an unknown field, a number where a word belongs, a duration that is none is refused, naming line and field.

>>> parse_spec("name: a\\nmodel: digits\\nversion: '1.1'\\nstages:\\n  - {name: all, percent: 100, soak: 15x}\\n")
Traceback (most recent call last):
covey_server.core.document.DocumentError: line 5: stages[0].soak: '15x' is not a duration (15s, 10m, 2h, 7d)
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from covey_contract.manifest import ModelName, VersionName
from covey_server.core.document import Document, DocumentError, Path, parse
from covey_server.core.spec.checks import check
from covey_server.core.spec.gates import Gates
from covey_server.core.spec.pace import Pace
from covey_server.core.spec.policy import BreachAction, Conditions, Conflict, OnBreach, Quarantine, Retry, Served
from covey_server.core.spec.schedule import Maintenance, Schedule
from covey_server.core.spec.stages import Draw, Stage
from covey_server.core.spec.target import DeviceSet, Target
from covey_server.core.spec.values import Duration, Name, Share, Strict, decode_hook, encode_hook, span

MAX_STAGES = 50

Objective = Literal["rank", "latency", "accuracy", "size"]


class ProbationSpec(Strict, frozen=True, kw_only=True):
    """When a device goes back by itself; as `covey_contract.messages.Probation`."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    max_errors: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 3
    max_slowdown: Annotated[float, msgspec.Meta(gt=1, le=1000)] | None = None
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50


class CampaignSpec(Strict, frozen=True, kw_only=True):
    """A whole campaign file. `docs/campaigns.md` is its reference."""

    name: Name
    model: ModelName
    version: VersionName
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)]
    target: Target = Target(groups=("all",))
    exclude: DeviceSet = DeviceSet()
    objective: Objective = "rank"
    draw: Draw = "spread"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] | None = (
        None  # of the draw; None: the server draws and records one
    )
    approval: bool = False  # somebody else than the author has to let it start
    conflict: Conflict = "refuse"  # where another campaign is under way with the model on devices of this one
    priority: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0  # the highest queued campaign goes first
    schedule: Schedule = Schedule()
    pace: Pace | None = None
    maintenance: Maintenance | None = None
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    min_reached: Share = 0.5  # of a stage's devices, before it may pass
    settle: Duration = span(3000)  # after a swap, before its measurements count
    served: Served = msgspec.field(default_factory=Served)
    timeout: Duration | None = None  # of a device, from its first word on its order to its end; None: none
    retry: Retry = msgspec.field(default_factory=Retry)
    quarantine: Quarantine = msgspec.field(default_factory=Quarantine)
    gates: Gates = msgspec.field(default_factory=Gates)
    on_breach: BreachAction | OnBreach = "rollback"
    probation: ProbationSpec = ProbationSpec()
    assignment_ttl: Duration = span(7 * 86_400_000)

    @property
    def breach(self) -> OnBreach:
        """`on_breach`, written out."""
        return self.on_breach if isinstance(self.on_breach, OnBreach) else OnBreach(action=self.on_breach)

    @property
    def is_live(self) -> bool:
        return self.target.membership == "live"

    def gates_of(self, stage: int) -> Gates:
        """Those that the stage is judged by."""
        return self.stages[stage].gates or self.gates

    def min_reached_of(self, stage: int) -> float:
        own = self.stages[stage].min_reached
        return self.min_reached if own is None else own

    def pace_of(self, stage: int) -> Pace | None:
        """That which holds while this is the present stage."""
        return self.stages[stage].pace or self.pace

    @property
    def is_paced(self) -> bool:
        """Whether orders go out bit by bit, to devices that are connected, rather than to a whole stage at once."""
        inside = self.maintenance is not None and self.maintenance.fetch == "inside"
        return inside or self.pace is not None or any(stage.pace is not None for stage in self.stages)


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
    except UnicodeEncodeError as error:
        raise document.error((), "the name of a field holds half of a character (a lone surrogate)") from error
    check(spec, document.error)
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


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_EXPECTED = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")


def _located(document: Document, text: str) -> DocumentError:
    """msgspec's complaint, in words, with the line of what it is about."""
    message, _, place = text.partition(" - at `")
    path = _path(place.rstrip("`"))
    if place.startswith("key` in"):
        return document.error(path, "a key is profile, simulated, labels.NAME or facts.PATH")
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
