"""A study as people read it: a table, and a plot as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from rich.table import Table

from covey_converters.tune import Point, Study

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 60, 70
_COLOURS = {"onnxruntime": "#2563eb", "openvino": "#0d9488", "tflite": "#d97706", "tensorrt": "#65a30d"}
_OTHER = "#6b7280"
_SMALLEST, _LARGEST = 4.0, 16.0  # radius of a point


def table(study: Study) -> Table:
    """The front first, the fastest at the top; then the others, with the reason where they may not ship."""
    found = Table("", "target", "recipe", "p50 ms", "kB", "quality", "why not", box=None, padding=(0, 2, 0, 0))
    for point in sorted(study.points, key=_order):
        found.add_row(
            "*" if point.on_front else "",
            point.target,
            point.recipe or "-",
            "-" if point.p50_ms is None else f"{point.p50_ms:.3f}",
            f"{point.size / 1e3:.1f}" if point.size else "-",
            "-" if point.quality is None else f"{point.quality:.4f}",
            point.reason if point.outcome.value != "built" else "" if point.on_front else "another is better in all",
        )
    return found


def _order(point: Point) -> tuple[bool, bool, float, str]:
    return not point.on_front, point.p50_ms is None, point.p50_ms or 0.0, point.target


def plot(study: Study) -> str:
    """An SVG document: latency to the right, quality upwards, the area of a point its size; the front is joined and named."""
    points = [point for point in study.points if point.p50_ms is not None and point.quality is not None]
    reach = max([*(point.p50_ms or 0.0 for point in points), study.source_p50_ms or 0.0, 1e-6]) * 1.08
    low, high = _range([point.quality or 0.0 for point in points])
    largest = max((point.size for point in points), default=1) or 1

    def x(milliseconds: float) -> float:
        return _LEFT + milliseconds / reach * (_WIDTH - _LEFT - _RIGHT)

    def y(quality: float) -> float:
        return _HEIGHT - _BOTTOM - (quality - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    what = next((point.quality_of for point in points), "quality")
    body = [_text(_WIDTH / 2, 26, f"{study.source}: latency, quality and size", size=16)]
    body.append(
        _text(_WIDTH / 2, 44, f"one thread on {study.machine}; area of a point: size; line: the front", size=11)
    )
    body += _axes([(x(reach * step / 5), f"{reach * step / 5:.3g}") for step in range(6)], _ticks(low, high, y))
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 24, "p50 latency, ms"))
    body.append(_text(18, (_TOP + _HEIGHT - _BOTTOM) / 2, what, turned=True))
    if study.source_p50_ms is not None:
        at = x(study.source_p50_ms)
        body.append(
            f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#9ca3af" stroke-dasharray="4 4"/>'
        )
        body.append(_text(at, _TOP - 4, "source", size=11))
    front = sorted((point for point in points if point.on_front), key=_order)
    line = " ".join(f"{x(point.p50_ms or 0):.1f},{y(point.quality or 0):.1f}" for point in front)
    body.append(f'<polyline points="{line}" fill="none" stroke="#111827" stroke-opacity="0.4"/>')
    for point in points:
        radius = max(_SMALLEST, _LARGEST * (point.size / largest) ** 0.5)
        colour = next((code for name, code in _COLOURS.items() if point.target.startswith(name)), _OTHER)
        title = f"{point.target}: {point.recipe}; {point.p50_ms:.3f} ms, {point.size / 1e3:.1f} kB, {point.quality:.4f}"
        body.append(
            f'<circle cx="{x(point.p50_ms or 0):.1f}" cy="{y(point.quality or 0):.1f}" r="{radius:.1f}" fill="{colour}" '
            f'fill-opacity="{0.85 if point.on_front else 0.25}"><title>{escape(title)}</title></circle>'
        )
    for number, point in enumerate(front):
        # Names of neighbours on alternating sides, so that they do not cover each other.
        shift = -18 if number % 2 == 0 else 28
        body.append(_text(x(point.p50_ms or 0), y(point.quality or 0) + shift, point.target, size=11))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return "\n".join([head, background, *body, "</svg>", ""])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With some room around; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max((high - low) * 0.15, 1e-3)
    return low - room, high + room


def _ticks(low: float, high: float, y: Callable[[float], float]) -> list[tuple[float, str]]:
    values = [low + (high - low) * step / 5 for step in range(6)]
    return [(y(value), f"{value:.4f}") for value in values]


def _axes(below: Sequence[tuple[float, str]], beside: Sequence[tuple[float, str]]) -> list[str]:
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    found = [f'<path d="M{_LEFT},{_TOP} V{floor} H{right}" fill="none" stroke="#374151"/>']
    for at, text in below:
        found.append(_text(at, floor + 18, text, size=11))
    for at, text in beside:
        found.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#e5e7eb"/>')
        found.append(_text(_LEFT - 8, at + 4, text, size=11, anchor="end"))
    return found


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "middle", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#111827"{turn}>{escape(text)}</text>'
    )
