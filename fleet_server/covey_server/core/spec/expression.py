"""Conditions over a device's figures, as people write them in a campaign file: `p99_ms > 1.3 * before.p99_ms and temperature_c > 80`.

A small part of Python's expressions, read with `ast` and evaluated by walking it: numbers, the figures named in `FIGURES`, the same
figures `before` the swap, + - * /, comparisons, and/or/not, min, max and abs. There are no names but figures, no attributes but those
of `before`, no calls but those three, so that a campaign file can compute nothing else; length and size are bounded.

>>> parse_condition("error_rate > 0.02 or p99_ms > 2 * before.p99_ms").holds({"error_rate": 0.0, "p99_ms": 9.0}, {"p99_ms": 4.0})
True
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_LENGTH = 300
MAX_NODES = 100

# What a device's figures are called, and in which units.
FIGURES = {
    "requests": "requests answered or failed",
    "error_rate": "share of requests that failed, 0 to 1",
    "p50_ms": "median latency, end to end",
    "p90_ms": "90th percentile of latency, end to end",
    "p95_ms": "95th percentile of latency, end to end",
    "p99_ms": "99th percentile of latency, end to end",
    "mean_ms": "mean latency, end to end",
    "compute_p50_ms": "median of the runtime's own time",
    "compute_p99_ms": "99th percentile of the runtime's own time",
    "temperature_c": "mean temperature",
    "throttled_share": "share of windows in which the device throttled itself, 0 to 1",
    "memory_mb": "mean memory of the agent's processes",
    "drift": "how far the outputs' distribution moved since before the swap (PSI); there is none before",
}
BEFORE = "before"

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}


class _Unknown(Exception):
    """A figure that the device did not report, or a division by zero."""


@dataclass(frozen=True)
class Condition:
    """A condition that has been read and found well."""

    text: str
    tree: ast.expr
    figures: frozenset[str]  # that it asks for, after or before

    def holds(self, after: Mapping[str, float], before: Mapping[str, float]) -> bool | None:
        """Whether it is true of a device with these figures; None if that takes a figure that the device did not report."""
        try:
            return bool(_value(self.tree, after, before))
        except _Unknown:
            return None


def parse_condition(text: str) -> Condition:
    """Raises `ValueError`, in words for whoever wrote it."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{len(text)} characters; a condition has at most {MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no condition such as p99_ms > 20 and temperature_c > 80") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ValueError(f"a condition of more than {MAX_NODES} parts")
    figures: set[str] = set()
    _check(tree, figures)
    if not isinstance(tree, ast.Compare | ast.BoolOp) and not (
        isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
    ):
        raise ValueError(f"{text!r} is a number; a condition compares: {text.strip()} > 1")
    if not figures:
        raise ValueError(f"{text!r} names no figure; known are {', '.join(FIGURES)}")
    return Condition(text, tree, frozenset(figures))


def _check(node: ast.expr, figures: set[str]) -> None:
    match node:
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            raise ValueError(f"{node.value!r} is no number")
        case ast.Constant(value=int() | float() as number):
            if not math.isfinite(number) or abs(number) > 1e12:
                raise ValueError(f"{number} is too large")
        case ast.Name(id=name):
            _note(name, figures)
        case ast.Attribute(value=ast.Name(id=scope), attr=name):
            if scope != BEFORE or name == "drift":
                raise ValueError(f"{scope}.{name} is not known; before.p99_ms is a figure before the swap")
            _note(name, figures)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, figures)
            _check(right, figures)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            _check(operand, figures)
        case ast.BoolOp(values=values):
            for each in values:
                _check(each, figures)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            for each in (left, *others):
                _check(each, figures)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _CALLS:
            if not arguments or (name == "abs") != (len(arguments) == 1):
                raise ValueError(f"{name} takes {'one number' if name == 'abs' else 'two numbers or more'}")
            for each in arguments:
                _check(each, figures)
        case _:
            raise ValueError(
                f"{ast.unparse(node)!r} is not allowed; + - * / < <= > >= and or not min max abs are, over figures and numbers"
            )


def _note(name: str, figures: set[str]) -> None:
    if name not in FIGURES:
        raise ValueError(f"{name} is no figure; known are {', '.join(FIGURES)}")
    figures.add(name)


def _value(node: ast.expr, after: Mapping[str, float], before: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return _known(after.get(name))
        case ast.Attribute(attr=name):
            return _known(before.get(name))
        case ast.BinOp(left=left, op=op, right=right):
            try:
                return _known(_BINARY[type(op)](_value(left, after, before), _value(right, after, before)))
            except ZeroDivisionError:
                raise _Unknown from None
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return float(not _value(operand, after, before))
        case ast.UnaryOp(operand=operand):
            return -_value(operand, after, before)
        case ast.BoolOp(op=op, values=values):
            return _join(isinstance(op, ast.Or), values, after, before)
        case ast.Compare(left=left, ops=ops, comparators=others):
            numbers = [_value(each, after, before) for each in (left, *others)]
            return float(all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, numbers, numbers[1:], strict=False)))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _known(_CALLS[name](*(_value(each, after, before) for each in arguments)))
    raise AssertionError(f"unchecked: {ast.dump(node)}")


def _join(is_or: bool, values: list[ast.expr], after: Mapping[str, float], before: Mapping[str, float]) -> float:
    """`or` is true if any part is, whatever is unknown of the others; `and` false likewise."""
    unknown = False
    for each in values:
        try:
            if bool(_value(each, after, before)) == is_or:
                return float(is_or)
        except _Unknown:
            unknown = True
    if unknown:
        raise _Unknown
    return float(not is_or)


def _known(value: float | None) -> float:
    if value is None or not math.isfinite(value):
        raise _Unknown
    return value
