"""The campaign file's grammar as a tree of form fields, made from the types of `CampaignSpec`.

A `Field` is one input, a `Group` a mapping of fields, a `Rows` a list of mappings. Keys such as `Stage.soak` name a field by its type,
wherever it stands; `texts` has its words under that key.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from covey_server.core.spec import CampaignSpec
from covey_server.core.spec.values import ByteRate, Duration, Moment

_CUSTOM = {Duration: "duration", ByteRate: "rate", Moment: "moment"}


@dataclass(frozen=True)
class Field:
    """`kind`: text, number, flag, choice, days, names, numbers, duration, rate, moment, condition (several lines of KEY = VALUES).
    `default` is what holds where nothing is given, as the file would write it."""

    name: str
    key: str
    kind: str
    required: bool
    default: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    whole: bool = False
    longest: int = 256


@dataclass(frozen=True)
class Group:
    """`optional`: it says something by being there, so that the form asks for it with a checkbox."""

    name: str
    key: str
    children: tuple[Node, ...]
    optional: bool = False


@dataclass(frozen=True)
class Rows:
    name: str
    key: str
    item: Group
    most: int


Node = Field | Group | Rows


@cache
def tree() -> Group:
    """The whole grammar."""
    return _group("", "CampaignSpec", CampaignSpec, optional=False)


def leaves(node: Node | None = None) -> Iterator[Node]:
    """Every field, group and list of the grammar, once for each place where it stands."""
    for child in (tree() if node is None else node).children:  # type: ignore[union-attr]  # fields are not descended into
        yield child
        if isinstance(child, Group):
            yield from leaves(child)
        elif isinstance(child, Rows):
            yield from leaves(child.item)


def _group(name: str, key: str, kind: type[msgspec.Struct], *, optional: bool) -> Group:
    described = inspect.type_info(kind)
    if not isinstance(described, inspect.StructType):
        raise TypeError(f"{kind} is not a struct")
    children = tuple(_node(field, kind) for field in described.fields)
    return Group(name, key, children, optional)


def _node(field: inspect.Field, owner: type[msgspec.Struct]) -> Node:
    name, key = field.encode_name, f"{owner.__name__}.{field.name}"
    kinds, optional = _alternatives(field.type)
    for each in kinds:
        if isinstance(each, inspect.VarTupleType) and isinstance(each.item_type, inspect.StructType):
            item = each.item_type.cls
            return Rows(name, key, _group("", item.__name__, item, optional=False), each.max_length or 50)
    for each in kinds:
        if isinstance(each, inspect.StructType):
            return _group(name, key, each.cls, optional=optional)
    return _field(name, key, kinds[0], field)


def _alternatives(kind: inspect.Type) -> tuple[list[inspect.Type], bool]:
    """What a value may be, and whether it may be left out altogether (None)."""
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if not isinstance(kind, inspect.UnionType):
        return [kind], False
    found = [inner for each in kind.types for inner in _alternatives(each)[0]]
    return [each for each in found if not isinstance(each, inspect.NoneType)], any(
        isinstance(each, inspect.NoneType) for each in found
    )


def _field(name: str, key: str, kind: inspect.Type, field: inspect.Field) -> Field:
    common: dict[str, Any] = {
        "name": name,
        "key": key,
        "required": field.required,
        "default": _default(field),
    }
    for test, make in _READERS:
        if isinstance(kind, test):
            return Field(**common, **make(kind))
    raise TypeError(f"{key}: the form knows nothing of {kind}")


def _default(field: inspect.Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT or value is None or value in ((), ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return " ".join(_plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: object) -> str:
    return str(value.value) if isinstance(value, enum.Enum) else str(value)


def _number(kind: Any) -> dict[str, Any]:
    return {
        "kind": "number",
        "least": kind.ge if kind.ge is not None else kind.gt,
        "most": kind.le if kind.le is not None else kind.lt,
        "whole": isinstance(kind, inspect.IntType),
    }


def _several(kind: inspect.VarTupleType) -> dict[str, Any]:
    inner = _alternatives(kind.item_type)[0][0]
    if isinstance(inner, inspect.EnumType):
        return {"kind": "days", "choices": tuple(str(one.value) for one in inner.cls)}
    if isinstance(inner, inspect.LiteralType):
        return {"kind": "days", "choices": tuple(str(one) for one in inner.values)}
    return {"kind": "numbers" if isinstance(inner, inspect.IntType) else "names", "longest": 65_000}


_READERS: tuple[tuple[type[inspect.Type], Callable[[Any], dict[str, Any]]], ...] = (
    (inspect.BoolType, lambda _: {"kind": "flag"}),
    (inspect.IntType, _number),
    (inspect.FloatType, _number),
    (inspect.LiteralType, lambda kind: {"kind": "choice", "choices": tuple(str(one) for one in kind.values)}),
    (inspect.CustomType, lambda kind: {"kind": _CUSTOM[kind.cls], "longest": 40}),
    (inspect.DictType, lambda _: {"kind": "condition", "longest": 20_000}),
    (inspect.VarTupleType, _several),
    (inspect.StrType, lambda kind: {"kind": "text", "longest": kind.max_length or 256}),
)
