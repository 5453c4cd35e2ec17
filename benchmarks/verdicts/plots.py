"""The plots docs/images/verdicts-*.svg: from a run's figures, and from one simulated fleet whose evidence is followed look by look.

Plain SVG by our own hand, so that drawing needs no library. `python -m benchmarks.verdicts.document` draws those of a run,
`python -m benchmarks.verdicts.plots` that of the one fleet, which needs no run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.verdicts.fleet import Model
from benchmarks.verdicts.rules import GATES, RULES, Look, latency_evidence
from benchmarks.verdicts.scenarios import evidence_over_time
from covey_server.core.gates import alpha_each

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
IMAGES = ROOT / "docs" / "images"
EXAMPLE_SEED = 77_500_000

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 250, 40, 46
COLOURS = ("#0b6e4f", "#c8553d", "#2f6db5", "#8f5fbf", "#b8860b", "#5b6770", "#d1478c", "#3c9d9b", "#7a8b2d", "#a0522d")
NAMES = {
    "covey_e_process": "Covey, e-process",
    "covey_threshold_50pct": "Covey, threshold (× 1.5)",
    "pooled_p99_10pct": "pooled p99 > × 1.10",
    "pooled_p99_20pct_5min": "pooled p99 > × 1.20, 5 min",
    "own_past_10pct_5min": "own past > × 1.10, 5 min",
    "kayenta_mann_whitney": "Mann-Whitney (Kayenta-like)",
    "t_test_uncorrected": "t-test on devices, each minute",
    "hawkbit_5pct_failed": "hawkBit-like (> 5 % failed)",
    "azure_5pct_and_10_failed": "Azure-like (> 5 %, ≥ 10)",
    "aws_5pct_of_10": "AWS-like (≥ 5 % of ≥ 10)",
}

Points = Sequence[tuple[float, float]]


class Chart:
    """Lines over linear axes, with a legend at the right."""

    def __init__(self, title: str, x_title: str, y_title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y, self._entries = x, y, 0
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            f'<text x="{LEFT}" y="22" font-size="15" fill="#1c2428">{escape(title)}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#45525a">{escape(x_title)}</text>',
            f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle" fill="#45525a">{escape(y_title)}</text>',
        ]

    def ticks(self, x: Sequence[float], y: Sequence[float], y_unit: str = "") -> None:
        for value in x:
            at = self._at(value, self._y[0])[0]
            self._parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e4e9ec"/>'
            )
            self._text(at, HEIGHT - BOTTOM + 16, f"{value:g}", "middle")
        for value in y:
            at = self._at(self._x[0], value)[1]
            self._parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e9ec"/>')
            self._text(LEFT - 6, at + 4, f"{value:g}{y_unit}", "end")

    def line(self, points: Points, colour: str, name: str = "", *, width: float = 1.8, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._at(*point) for point in points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')
        if name:
            y = TOP + 12 + 20 * self._entries
            self._entries += 1
            x = WIDTH - RIGHT + 14
            self._parts.append(
                f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="{width}"{dashed}/>'
            )
            self._text(x + 28, y, name, "start")

    def save(self, path: Path) -> None:
        path.write_text("\n".join([*self._parts, "</svg>"]) + "\n")

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#45525a">{escape(text)}</text>')

    def _at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        x, y = min(max(x, x0), x1), min(max(y, y0), y1)
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )


def halted(result: dict[str, Any], what: str, title: str, until: int) -> Chart:
    """The share of campaigns that each rule has halted, over time."""
    found = result["halted_by_minute"]
    chart = Chart(title, "minutes since the end of the burn-in", "campaigns halted", (0, until), (0, 100))
    chart.ticks(range(0, until + 1, until // 6), range(0, 101, 20), " %")
    for number, rule in enumerate(RULES):
        points = [
            (minute, 100 * share)
            for minute, share in zip(found["minutes"], found[what][rule], strict=True)
            if minute <= until
        ]
        ours = rule == "covey_e_process"
        chart.line([(0, 0), *points], COLOURS[number], NAMES[rule], width=3.2 if ours else 1.6)
    return chart


def evidence() -> Chart:
    """One fleet's evidence, look by look, with nothing changed and with something."""
    boundary = -math.log10(alpha_each(GATES))
    chart = Chart(
        "Evidence of the latency gate on one simulated fleet, 50 canaries",
        "minutes since the end of the burn-in",
        "log10 of the e-value",
        (0, 60),
        (-2, 6),
    )
    chart.ticks(range(0, 61, 10), range(-2, 7, 1))
    chart.line([(0, boundary), (60, boundary)], "#1c2428", f"boundary (e = {10**boundary:.0f})", width=1.4, dash="6 4")
    for number, (name, looks) in enumerate(evidence_over_time(EXAMPLE_SEED, Model(), 60)):
        points = [(at + 1, _log10(look)) for at, look in enumerate(looks)]
        chart.line([(0, 0), *points], COLOURS[number], name, width=2.2)
    return chart


def _log10(look: Look) -> float:
    return latency_evidence(look).log_e / math.log(10)


def draw(results: Path, folder: Path) -> None:
    """The plots of a run."""
    result = json.loads(results.read_text())
    halted(result, "unchanged", "Nothing changed, 50 canaries: campaigns halted wrongly", 120).save(
        folder / "verdicts-unchanged.svg"
    )
    halted(result, "tail_10pct_50", "Only the tail 10 % slower, 50 canaries: campaigns halted rightly", 30).save(
        folder / "verdicts-tail.svg"
    )


if __name__ == "__main__":
    evidence().save(IMAGES / "verdicts-evidence.svg")
