"""What a firmware profile is: one TOML file in `data/`, strict (an unknown field is an error).

Sizes are in MB (10^6 bytes), temperatures in degrees Celsius, times in milliseconds. `targets` are ranked, the best first, and
name no `-smNN`: that comes from the device's facts, or from `compute_capability` where every device of the kind has the same.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated, Literal, get_args

import msgspec

from covey_contract.errors import DecodeError
from covey_contract.facts import Facts
from covey_contract.manifest import check_target

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Megabytes = Annotated[int, msgspec.Meta(gt=0)]
Celsius = Annotated[float, msgspec.Meta(gt=0, le=150)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
Capability = Annotated[str, msgspec.Meta(pattern=r"^\d{1,2}\.\d$")]
ProfileId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
What = Literal["memory", "accelerators", "runtimes", "precision", "thermal"]
MUST_CITE: frozenset[str] = frozenset(get_args(What))


class SwapMode(enum.StrEnum):
    """SIDE_BY_SIDE: the new build loads and warms up beside the old one. SEQUENTIAL: memory holds only one of them."""

    SIDE_BY_SIDE = "side-by-side"
    SEQUENTIAL = "sequential"


class AcceleratorRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some one accelerator of the device has all of these. `name` is a regular expression, searched for."""

    kind: Literal["gpu", "npu", "tpu"]
    vendor: Text | None = None
    name: Text | None = None
    compute_capability: Capability | None = None

    def __post_init__(self) -> None:
        _check_patterns(name=self.name)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How facts match: every predicate that is given must hold. Of several profiles that match, the highest `priority` wins:
    10 a kind of processor, 50 a family, 60 a family with an accelerator, 100 one board."""

    priority: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    architectures: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    board: Text | None = None  # regular expressions, searched for
    cpu_model: Text | None = None
    accelerator: AcceleratorRule | None = None

    def __post_init__(self) -> None:
        _check_patterns(board=self.board, cpu_model=self.cpu_model)


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one model's runner may take: `share` of the device's memory, and never more than `max_mb`."""

    share: Share
    max_mb: Megabytes


class Storage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the files of one build may take."""

    build_mb: Megabytes


class Thermal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device slows itself down from `throttle_c` on; at `limit_c` it is too hot to be trusted."""

    throttle_c: Celsius
    limit_c: Celsius

    def __post_init__(self) -> None:
        if self.limit_c < self.throttle_c:
            raise ValueError(f"limit_c {self.limit_c:g} lies below throttle_c {self.throttle_c:g}")


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where figures come from: a vendor's page by its title, and its date or edition, in words."""

    says: Annotated[tuple[What, ...], msgspec.Meta(min_length=1)]
    page: Text
    date: Text


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device."""

    id: ProfileId
    title: Text
    targets: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=32)]
    rule: Rule = msgspec.field(name="match")
    memory: Memory
    storage: Storage
    swap: SwapMode
    thermal: Thermal
    latency_objective_ms: Annotated[
        float, msgspec.Meta(gt=0)
    ]  # the median answer of a model made for this kind of device
    sources: tuple[Source, ...]
    examples: Annotated[
        tuple[Facts, ...], msgspec.Meta(min_length=1)
    ]  # what such devices report, as far as rules look at it
    compute_capability: Capability | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        for target in self.targets:
            try:
                check_target(target)
            except DecodeError as error:
                raise ValueError(f"targets: {error}") from error
            if "-sm" in target:
                raise ValueError(f"targets: {target!r} names its GPU; a profile leaves that to the device's facts")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: one is ranked twice")
        missing = MUST_CITE - {what for source in self.sources for what in source.says}
        if missing:
            raise ValueError(f"sources: none for {', '.join(sorted(missing))}")


def _check_patterns(**patterns: str | None) -> None:
    for field, pattern in patterns.items():
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{field}: not a regular expression: {error}") from error
