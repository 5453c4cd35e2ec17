"""What a gate's verdict shows: its name, what it allows, how sure it is, and the curves of its evidence.

A verdict is plain JSON as `covey_server.core.gates.verdict.Verdict.to_json` writes it; one that was stored by an older Covey may
lack any of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from covey_server.console import states, words
from covey_server.console.i18n import gettext as _

Figures = dict[str, Any]

_LATENCY = re.compile(r"latency_p(?P<quantile>\d+(_\d+)?)(_(?P<measure>\w+))?")
# Changes of these are in degrees, of all others a factor.
_IN_DEGREES = frozenset({"temperature"})
_HUGE = 1e6


def gate_name(name: str) -> str:
    """As people say it: `latency_p99` as "latency p99"; a gate that a campaign names itself keeps its own name."""
    if found := _LATENCY.fullmatch(name):
        quantile = found["quantile"].replace("_", ".")
        measure = f" {states.name(found['measure'])}" if found["measure"] else ""
        return f"{states.name('latency')} p{quantile}{measure}"
    if name.startswith("expression_"):
        return name.removeprefix("expression_")
    return states.name(name)


def evidence(value: float | None) -> str:
    """An e-value: how many times likelier the data are if the build got worse."""
    if value is None:
        return words.NOTHING
    if value >= _HUGE:
        return _("over a million")
    return words.decimal(value, 0 if value >= 10 else 1 if value >= 1 else 2)


def shift(value: float | None, figures: Figures) -> str:
    """A change as people read it: +3.1 %, −0.4 %, +2.0 °C."""
    if value is None:
        return words.NOTHING
    if figures.get("gate") in _IN_DEGREES:
        return _signed(value, 1) + " °C"
    change = (value - 1) * 100
    return _signed(change, 0 if abs(change) >= 100 else 1) + " %"


def _signed(value: float, digits: int) -> str:
    shown = words.decimal(abs(value), digits)
    return f"±{shown}" if round(value, digits) == 0 else f"{'+' if value > 0 else '−'}{shown}"


def allows(figures: Figures) -> list[str]:
    """What the gate allows, and how much it wants to have seen, as phrases."""
    limits = figures.get("threshold")
    if not isinstance(limits, dict):
        return []
    said: dict[str, Callable[[Any], str]] = {
        "max_rate": lambda value: _("at most %(share)s") % {"share": words.percent(value)},
        "max_share": lambda value: _("at most %(share)s of the devices") % {"share": words.percent(value)},
        "base_rate": lambda value: _("no more than %(share)s in the long run") % {"share": words.percent(value)},
        "max_count": lambda value: _("at most %(devices)s") % {"devices": words.devices(int(value))},
        "min_devices": lambda value: _("judged from %(devices)s on") % {"devices": words.devices(int(value))},
        "max_ratio": lambda value: _("at most %(factor)s") % {"factor": words.factor(value)},
        "min_increase_ms": lambda value: _("or less than %(span)s more") % {"span": words.milliseconds(value)},
        "max_ms": lambda value: _("at most %(span)s") % {"span": words.milliseconds(value)},
        "max_psi": lambda value: _("a PSI of at most %(psi)s") % {"psi": words.decimal(value, 2)},
        "min_requests": lambda value: _("judged from %(requests)s on") % {"requests": words.requests(int(value))},
    }
    return [
        said[name](value)
        for name, value in limits.items()
        if name in said and value is not None and not (name.startswith("min_") and value == 0)
    ]


def log10(value: float | None) -> float:
    return math.log10(value) if value and value > 0 else 0.0


def curves(figures: Figures) -> Figures | None:
    """The charts of an e-process: its evidence against the boundary, and its estimate with the confidence sequence. None where
    there is no course of it yet."""
    trace, boundary = figures.get("trace"), (figures.get("evidence") or {}).get("boundary")
    if not trace or len(trace) < 2 or not boundary:
        return None
    times = [point[0] / 1000 for point in trace]
    strength = [point[1] for point in trace]
    name = gate_name(str(figures.get("gate", "")))
    found: Figures = {
        "evidence": {
            "kind": "evidence",
            "t": times,
            "lines": [{"name": name, "group": name, "kind": "quantile", "values": strength}],
            "limit": {"value": log10(boundary), "text": _("halts at %(boundary)s") % {"boundary": evidence(boundary)}},
            "marks": [],
        },
        "estimate": None,
    }
    estimated = [point for point in trace if len(point) > 3 and point[2] is not None and point[3] is not None]
    if len(estimated) >= 2:
        margin = figures.get("margin")
        found["estimate"] = {
            "kind": "degrees" if figures.get("gate") in _IN_DEGREES else "change",
            "t": [point[0] / 1000 for point in estimated],
            "lines": [
                {"name": name, "group": name, "kind": "quantile", "values": [point[2] for point in estimated]},
                {"name": "", "group": name, "kind": "low", "values": [point[3] for point in estimated]},
                {"name": "", "group": name, "kind": "high", "values": [point[4] for point in estimated]},
            ],
            "limit": None
            if margin is None
            else {"value": margin, "text": _("tolerated: %(margin)s") % {"margin": shift(margin, figures)}},
            "marks": [],
        }
    return found
