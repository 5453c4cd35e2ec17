"""The stages' part of a campaign file: who goes when, in which order devices are drawn, and what a stage must show."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.gates import Gates
from covey_server.core.spec.pace import Pace
from covey_server.core.spec.target import Selector
from covey_server.core.spec.values import Duration, GroupName, Moment, Name, Share, Strict, span

Draw = Literal["spread", "random", "least_critical"]
Each = Literal["profile", "site"]


class Stage(Strict, frozen=True, kw_only=True):
    """Who: exactly one of `group`, `select`, `percent`, `count` and `each` alone.

    `percent` and `count` are cumulative, of the whole target; with `each`, of each profile's or site's devices. `each` alone
    stands for one stage after the other, one for each profile or site; `only` names a single one of them ("" is those without).
    """

    name: Name
    group: GroupName | None = None
    select: Selector | None = None
    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = None
    each: Each | None = None
    only: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    draw: Draw | None = None  # None: the campaign's
    not_before: Moment | None = None
    approval: bool = False  # somebody else than the author has to let it start
    soak: Duration = span(0)
    min_reached: Share | None = None  # None: the campaign's
    gates: Gates | None = None  # instead of the campaign's
    pace: Pace | None = None  # instead of the campaign's, while this is the present stage

    @property
    def one_by_one(self) -> bool:
        """Stands for a stage for each profile or site."""
        return self.each is not None and self.only is None and self.percent is None and self.count is None
