"""Values as people read them: times, sizes, shares, and what each state means. Pure.

>>> milliseconds(0.4567), megabytes(1_234_567), ago(61_000)
('0.457 ms', '1.23 MB', '1 min ago')
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Look:
    """How a state is shown: never by colour alone. `tone` is ok, busy, warn, bad or calm; `icon` a name in icons.html."""

    tone: str
    icon: str
    text: str


_OK, _BUSY, _WARN, _BAD, _CALM = "ok", "busy", "warn", "bad", "calm"

_LOOKS: dict[str, Look] = {
    # devices
    "online": Look(_OK, "dot", "online"),
    "offline": Look(_CALM, "ring", "offline"),
    "revoked": Look(_BAD, "cross", "revoked"),
    # campaigns
    "planned": Look(_CALM, "ring", "planned"),
    "running": Look(_BUSY, "play", "running"),
    "paused": Look(_WARN, "pause", "paused"),
    "halted": Look(_BAD, "stop", "halted"),
    "rolling_back": Look(_WARN, "back", "rolling back"),
    "rolled_back": Look(_WARN, "back", "rolled back"),
    "restored_locally": Look(_WARN, "back", "went back by itself"),
    "done": Look(_OK, "check", "done"),
    "aborted": Look(_CALM, "stop", "aborted"),
    "failed": Look(_BAD, "cross", "failed"),
    "skipped": Look(_CALM, "ring", "left out"),
    # stages
    "waiting": Look(_CALM, "ring", "waiting"),
    "passed": Look(_OK, "check", "passed"),
    "stopped": Look(_BAD, "stop", "stopped"),
    # gates
    "passing": Look(_OK, "check", "passing"),
    "breached": Look(_BAD, "cross", "breached"),
    "no_evidence": Look(_CALM, "clock", "no evidence yet"),
    # deployments on a device
    "issued": Look(_CALM, "clock", "not heard of yet"),
    "assigned": Look(_BUSY, "clock", "assigned"),
    "fetching": Look(_BUSY, "down", "fetching"),
    "verifying": Look(_BUSY, "clock", "verifying"),
    "staged": Look(_BUSY, "clock", "staged"),
    "warming": Look(_BUSY, "clock", "warming up"),
    "probation": Look(_BUSY, "eye", "probation"),
    "active": Look(_OK, "check", "active"),
    "refused": Look(_BAD, "cross", "refused"),
    "removed": Look(_CALM, "ring", "removed"),
    "superseded": Look(_CALM, "ring", "superseded"),
    "replaced": Look(_CALM, "ring", "replaced"),
    # builds
    "queued": Look(_CALM, "clock", "queued"),
    "building": Look(_BUSY, "gear", "building"),
    "built": Look(_OK, "check", "built"),
    "checked": Look(_OK, "eye", "checked"),
    "unsupported": Look(_CALM, "ring", "not possible"),
    "waiting_for_builder": Look(_WARN, "clock", "no builder yet"),
}


def look(state: str | None) -> Look:
    """How this state is shown; an unknown one as it is written."""
    if state is None:
        return Look(_CALM, "ring", "none")
    return _LOOKS.get(state) or Look(_CALM, "ring", state.replace("_", " "))


def milliseconds(value: float | None) -> str:
    """Three significant digits; from ten seconds on, seconds."""
    if value is None or math.isnan(value):
        return "–"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"


def megabytes(size: float | None) -> str:
    """Bytes in decimal units."""
    if size is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            value = size / factor
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{size:.0f} B"


def percent(share: float | None) -> str:
    """A share of 1; small ones keep a figure that is not zero."""
    if share is None or math.isnan(share):
        return "–"
    value = share * 100
    if value == 0:
        return "0 %"
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.2f} %" if value < 10 else f"{value:.1f} %"


def points(drop: float) -> str:
    """A drop of accuracy as the change it is, in percentage points."""
    change = round(-drop * 100, 2)
    return "±0 pp" if change == 0 else f"{change:+.2f} pp".replace("-", "−")


def number(value: float | None) -> str:
    """With thin spaces between thousands."""
    if value is None:
        return "–"
    return f"{value:,.0f}".replace(",", "\u202f")


def duration(span_ms: float | None) -> str:
    """The two largest units."""
    if span_ms is None:
        return "–"
    seconds = max(span_ms, 0) / 1000
    if seconds < 1:
        return f"{max(span_ms, 0):.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{hours // 24} d"


def ago(span_ms: float) -> str:
    """Only the largest unit, so that the words do not change all the time."""
    seconds = span_ms / 1000
    if seconds < 0:
        return f"in {duration(-span_ms)}"
    if seconds < 5:
        return "just now"
    for unit, factor, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if seconds < factor * most:
            return f"{int(seconds / factor)} {unit} ago"
    return f"{int(seconds / 86_400)} d ago"


def absolute(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


_LONG_NUMBER = re.compile(r"\d+\.\d{3,}")
_TIMES = re.compile(r"\bx(?=\d)")


def plain(text: str) -> str:
    """A sentence of the engine for people.

    >>> plain("p99 end_to_end 3.4234 -> 20.9515 ms (x6.02)")
    'p99 end to end 3.42 → 21 ms (×6.02)'
    """
    text = text.replace("end_to_end", "end to end").replace("->", "→")
    return _TIMES.sub("×", _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.3g}", text))


def limits(threshold: dict[str, Any]) -> list[str]:
    """What a gate allows, and how much it wants to have seen, as phrases.

    >>> limits({"max_rate": 0.1, "max_count": 0, "min_requests": 50})
    ['at most 10 %', 'at most 0 devices', 'judged from 50 requests on']
    """
    phrases = {
        "max_rate": lambda value: f"at most {value * 100:g} %",
        "max_count": lambda value: f"at most {number(value)} device{'' if value == 1 else 's'}",
        "max_ratio": lambda value: f"at most × {value:g}",
        "min_increase_ms": lambda value: f"or less than {value:g} ms more",
        "max_ms": lambda value: f"at most {milliseconds(value)}",
        "min_requests": lambda value: f"judged from {number(value)} requests on",
    }
    return [
        phrases[name](value) if name in phrases else f"{words(name)} {value}"
        for name, value in threshold.items()
        if value is not None
    ]


def words(name: str) -> str:
    """`inference_errors` as `inference errors`."""
    return name.replace("_", " ")


_SHORT_DIGEST = 12
_HEX = re.compile(r"[0-9a-f]{40,}")


def entry(detail: dict[str, Any]) -> list[tuple[str, str]]:
    """What an entry of the audit log tells, as names and values; without what is empty, digests shortened.

    >>> entry({"outcome": "built", "digest": "ab" * 32, "reason": "", "targets": ["a", "b"], "again": False})
    [('outcome', 'built'), ('digest', 'abababababab…'), ('targets', 'a, b')]
    """
    return [(words(name.removesuffix("_ms")), _value(name, value)) for name, value in detail.items() if _tells(value)]


def _tells(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _value(name: str, value: object) -> str:
    if value is True:
        return "yes"
    if name.endswith("_ms") and isinstance(value, int):
        return absolute(value)
    if isinstance(value, list):
        return ", ".join(_value("", one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value('', one)}" for key, one in value.items())
    return _HEX.sub(lambda found: f"{found[0][:_SHORT_DIGEST]}…", str(value))
