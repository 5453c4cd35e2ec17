"""What a gate says, and how its evidence went over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["passing", "breached", "no_evidence"]
Kind = Literal["threshold", "e_process"]

# Of a gate's evidence over time so many points are kept; older ones are thinned out.
MAX_TRACE = 120


@dataclass(frozen=True)
class Verdict:
    """One gate's word on one stage. `figures` is evidence for people and records: plain JSON values. Of an e-process they hold
    `evidence`: {e, log10_e, boundary, alpha, why}, `estimate`, `interval` and its `confidence`."""

    gate: str
    status: Status
    summary: str
    figures: dict[str, Any]
    kind: Kind = "threshold"

    def to_json(self) -> dict[str, Any]:
        return {"gate": self.gate, "kind": self.kind, "status": self.status, "summary": self.summary, **self.figures}


def with_trace(verdicts: Sequence[Verdict], earlier: Sequence[Mapping[str, Any]], at_ms: int) -> tuple[Verdict, ...]:
    """The verdicts, each e-process with its `trace`: what its evidence was at earlier looks and is now, as points of [at_ms, log10 of
    e, estimate, low, high]. `earlier` are the verdicts of the last look as JSON. A look that shows nothing new adds nothing."""
    before = {each.get("gate"): each for each in earlier if each.get("kind") == "e_process"}
    return tuple(
        _traced(verdict, before.get(verdict.gate, {}).get("trace") or [], at_ms)
        if verdict.kind == "e_process" and "evidence" in verdict.figures
        else verdict
        for verdict in verdicts
    )


def _traced(verdict: Verdict, trace: list[list[Any]], at_ms: int) -> Verdict:
    figures = verdict.figures
    low, high = figures.get("interval") or (None, None)
    now = [figures["evidence"]["log10_e"], figures.get("estimate"), low, high]
    if not trace or trace[-1][1:] != now:
        trace = [*trace, [at_ms, *now]]
    if len(trace) > MAX_TRACE:
        trace = [*trace[: MAX_TRACE // 2 : 2], *trace[MAX_TRACE // 2 :]]
    return replace(verdict, figures={**figures, "trace": trace})


def rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
