"""Values as people of the present language read them: times, sizes, shares, counts. Pure, but for the language.

>>> milliseconds(0.4567), size(1_234_567), ago(61_000), number(12345)
('0.457 ms', '1.23 MB', '1 min ago', '12,345')
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

from babel.dates import format_datetime
from babel.numbers import NumberPattern, parse_pattern

from covey_server.console import i18n, states
from covey_server.console.i18n import gettext as _
from covey_server.console.i18n import ngettext

NOTHING = "–"


def decimal(value: float, digits: int = 0) -> str:
    """With the language's separators."""
    return str(_pattern(digits).apply(value, i18n.locale()))


@cache
def _pattern(digits: int) -> NumberPattern:
    return parse_pattern("#,##0" + ("." + "0" * digits if digits else ""))


def milliseconds(value: float | None) -> str:
    """Three significant digits; from ten seconds on, seconds."""
    if value is None or math.isnan(value):
        return NOTHING
    if value >= 10_000:
        return f"{decimal(value / 1000, 1)} s"
    return f"{decimal(value, 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3)} ms"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            scaled = value / factor
            return f"{decimal(scaled, 0 if scaled >= 100 else 1 if scaled >= 10 else 2)} {unit}"
    return f"{decimal(value)} B"


def percent(share: float | None) -> str:
    """A share of 1; small ones keep a figure that is not zero."""
    if share is None or math.isnan(share):
        return NOTHING
    value = share * 100
    if value == 0:
        return "0 %"
    if value < 0.01:
        return "< 0.01 %"
    digits = 2 if value < 10 else 1
    return f"{decimal(value, 0 if value == round(value) else digits)} %"


def points(drop: float) -> str:
    """A drop of accuracy as the change it is, in percentage points."""
    change = round(-drop * 100, 2)
    return _("±0 pp") if change == 0 else _("%(change)s pp") % {"change": f"{change:+.2f}".replace("-", "−")}


def number(value: float | None) -> str:
    return NOTHING if value is None else decimal(value)


def factor(value: float | None) -> str:
    """How many times as much: × 1.05, × 7.7, × 120."""
    if value is None:
        return NOTHING
    return f"× {decimal(value, 0 if value >= 100 else 1 if value >= 10 else 2)}"


def devices(count: int) -> str:
    """A counted noun, in the form that the language wants."""
    return ngettext("%(number)s device", "%(number)s devices", count) % {"number": number(count)}


def requests(count: int) -> str:
    return ngettext("%(number)s request", "%(number)s requests", count) % {"number": number(count)}


def duration(span_ms: float | None) -> str:
    """The two largest units."""
    if span_ms is None:
        return NOTHING
    seconds = max(span_ms, 0) / 1000
    if seconds < 1:
        return f"{max(span_ms, 0):.0f} ms"
    if seconds < 60:
        return _("%(n)s s") % {"n": f"{seconds:.0f}"}
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        if rest and minutes < 10:
            return _("%(m)s min %(s)s s") % {"m": minutes, "s": rest}
        return _("%(n)s min") % {"n": minutes}
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        if minutes and hours < 10:
            return _("%(h)s h %(m)s min") % {"h": hours, "m": minutes}
        return _("%(n)s h") % {"n": hours}
    return _("%(n)s d") % {"n": hours // 24}


def span(span_ms: float) -> str:
    """A short time to a tenth of a second, a longer one as `duration`."""
    return _("%(n)s s") % {"n": decimal(span_ms / 1000, 1)} if span_ms < 60_000 else duration(span_ms)


def ago_words() -> dict[str, str]:
    """The patterns of `ago`, for the script that keeps the page's times true."""
    return {
        "now": _("just now"),
        "s": _("%(n)s s ago"),
        "min": _("%(n)s min ago"),
        "h": _("%(n)s h ago"),
        "d": _("%(n)s d ago"),
    }


def ago(span_ms: float) -> str:
    """Only the largest unit, so that the words do not change all the time."""
    seconds = span_ms / 1000
    if seconds < 0:
        return _("in %(span)s") % {"span": duration(-span_ms)}
    said = ago_words()
    if seconds < 5:
        return said["now"]
    for unit, length, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if seconds < length * most:
            return said[unit] % {"n": int(seconds / length)}
    return said["d"] % {"n": int(seconds / 86_400)}


def absolute(at_ms: int) -> str:
    """Date and time in UTC, as the language writes them; the page's script shows them in the viewer's own zone."""
    return f"{format_datetime(datetime.fromtimestamp(at_ms / 1000, UTC), 'medium', locale=i18n.locale())} UTC"


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


_SHORT_DIGEST = 12
_HEX = re.compile(r"[0-9a-f]{40,}")


def entry(detail: dict[str, Any]) -> list[tuple[str, str]]:
    """What an entry of the audit log tells, as names and values; without what is empty, digests shortened.

    >>> entry({"outcome": "built", "digest": "ab" * 32, "reason": "", "targets": ["a", "b"], "again": False})
    [('outcome', 'built'), ('digest', 'abababababab…'), ('targets', 'a, b')]
    """
    return [
        (states.name(name.removesuffix("_ms")), _value(name, value)) for name, value in detail.items() if _tells(value)
    ]


def _tells(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _value(name: str, value: object) -> str:
    if value is True:
        return _("yes")
    if name.endswith("_ms") and isinstance(value, int):
        return absolute(value)
    if isinstance(value, list):
        return ", ".join(_value("", one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value('', one)}" for key, one in value.items())
    return _HEX.sub(lambda found: f"{found[0][:_SHORT_DIGEST]}…", str(value))
