"""What a metric says of a build."""

from __future__ import annotations

from dataclasses import dataclass

from covey_contract.building import Accuracy
from covey_converters.evidence import Changed


@dataclass(frozen=True)
class Judged:
    """`outputs` are those that the metric looked at; the others are still compared column by column. `objections`: what the metric
    refuses besides a drop over the budget. `changed`: the single decisions behind the figure, where it is a share of such."""

    accuracy: Accuracy
    outputs: frozenset[str]
    objections: tuple[str, ...] = ()
    changed: Changed | None = None
