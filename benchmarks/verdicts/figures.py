"""From what the rules said to the figures of the table: shares with their intervals, and minutes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.verdicts import installs
from benchmarks.verdicts.rules import RULES
from benchmarks.verdicts.scenarios import Outcome

OURS = "covey_e_process"
MINUTES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 75, 90, 105, 120)


def summary(outcomes: Sequence[Outcome], harsh: Sequence[Outcome]) -> dict[str, Any]:
    """Ours at the top, then the same for each rule, then what only ours was asked."""
    rules = {rule: _of_rule(outcomes, rule) for rule in RULES}
    return {
        **rules[OURS],
        "rules": {rule: found for rule, found in rules.items() if rule != OURS},
        "beyond_the_study": {
            name: _rates(outcomes, name, canaries, OURS)
            for name, canaries in sorted({(each.scenario, each.canaries) for each in outcomes})
            if name not in _STUDIED
        },
        "harsh_fleet": _of_rule(harsh, OURS),
        "one_kind_20pct_by_kind": {
            str(kind): _share_of([each.halts[OURS] for each in outcomes if each.kind == kind], 15)
            for kind in sorted({each.kind for each in outcomes if each.kind is not None})
        },
        "halted_by_minute": {
            "minutes": MINUTES,
            "unchanged": {rule: _by_minute(outcomes, "unchanged", 50, rule) for rule in RULES},
            **{
                f"{name}_{canaries}": {rule: _by_minute(outcomes, name, canaries, rule) for rule in RULES}
                for name, canaries in (
                    ("whole_10pct", 50),
                    ("tail_10pct", 50),
                    ("whole_20pct", 10),
                    ("whole_10pct", 10),
                )
            },
        },
        "installs": installs.table(),
    }


_STUDIED = {
    "unchanged",
    "whole_10pct",
    "tail_10pct",
    "one_kind_20pct",
    "whole_20pct",
    "tail_20pct",
    "errors_x10",
}


def _of_rule(outcomes: Sequence[Outcome], rule: str) -> dict[str, Any]:
    whole, tail = (_share(outcomes, name, 50, rule, 10) for name in ("whole_10pct", "tail_10pct"))
    unchanged = {str(canaries): _share(outcomes, "unchanged", canaries, rule) for canaries in (10, 50, 200)}
    all_unchanged = [each.halts[rule] for each in outcomes if each.scenario == "unchanged"]
    medians = [
        minutes
        for name, canaries in (
            ("whole_10pct", 50),
            ("tail_10pct", 50),
            ("one_kind_20pct", 50),
            ("whole_20pct", 10),
            ("errors_x10", 50),
        )
        if (minutes := _median(outcomes, name, canaries, rule)) is not None
    ]
    return {
        "false_halt_rate": _share_of(all_unchanged),
        "false_halts_by_canaries": unchanged,
        "detected_10pct_p99": min((whole, tail), key=lambda share: share["rate"]),
        "detected_10pct_whole": whole,
        "detected_10pct_tail": tail,
        "detected_20pct_p99_10canaries": _share(outcomes, "whole_20pct", 10, rule, 15),
        "detected_20pct_tail_10canaries": _share(outcomes, "tail_20pct", 10, rule, 15),
        "detected_10pct_p99_10canaries": _share(outcomes, "whole_10pct", 10, rule, 15),
        "detected_20pct_one_kind": _share(outcomes, "one_kind_20pct", 50, rule, 15),
        "detected_errors_x10": _share(outcomes, "errors_x10", 50, rule, 5),
        "detected_errors_x10_10canaries": _share(outcomes, "errors_x10", 10, rule, 5),
        "median_minutes_to_detect": statistics.median(medians) if medians else None,
    }


def _by_minute(outcomes: Sequence[Outcome], name: str, canaries: int, rule: str) -> list[float]:
    """The share that had halted by each of `MINUTES`."""
    halts = [each.halts[rule] for each in outcomes if (each.scenario, each.canaries) == (name, canaries)]
    if not halts:
        return []
    return [
        round(sum(halted is not None and halted <= minute for halted in halts) / len(halts), 4) for minute in MINUTES
    ]


def _rates(outcomes: Sequence[Outcome], name: str, canaries: int, rule: str) -> dict[str, Any]:
    found: dict[str, Any] = {"canaries": canaries or "5 sites"}
    if name.startswith("unchanged"):
        return found | {"false_halt_rate": _share(outcomes, name, canaries, rule)}
    return found | {
        "detected_in_15_min": _share(outcomes, name, canaries, rule, 15),
        "detected_in_30_min": _share(outcomes, name, canaries, rule, 30),
        "median_minutes": _median(outcomes, name, canaries, rule),
    }


def _share(
    outcomes: Sequence[Outcome], name: str, canaries: int, rule: str, within: int | None = None
) -> dict[str, Any]:
    return _share_of(
        [each.halts[rule] for each in outcomes if (each.scenario, each.canaries) == (name, canaries)], within
    )


def _share_of(halts: Sequence[int | None], within: int | None = None) -> dict[str, Any]:
    """The share that halted (in time), with Wilson's interval of 95 %."""
    hits = sum(1 for minutes in halts if minutes is not None and (within is None or minutes <= within))
    low, high = wilson(hits, len(halts))
    share = hits / len(halts) if halts else math.nan
    return {
        "rate": round(share, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "of": len(halts),
        **({} if within is None else {"within_minutes": within}),
    }


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _median(outcomes: Sequence[Outcome], name: str, canaries: int, rule: str) -> float | None:
    """Of the minutes until it halted; None where half of the campaigns were not halted."""
    halts = [each.halts[rule] for each in outcomes if (each.scenario, each.canaries) == (name, canaries)]
    if not halts:
        return None
    middle = statistics.median(math.inf if minutes is None else minutes for minutes in halts)
    return None if math.isinf(middle) else middle
