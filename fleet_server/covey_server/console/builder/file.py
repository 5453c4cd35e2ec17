"""From the form to the campaign file and back.

`read` makes the file's mapping of a form's flat values (`stages.0.soak`), leaving out what was left empty; `write` writes it as YAML;
`shown` brings a file's mapping into the shape that the form shows, where short forms are written out.

>>> print(write(read({"name": "a", "stages.0.name": "all", "stages.0.percent": "100", "stages.0.soak": "5m"})), end="")
name: a
stages:
- {name: all, percent: 100, soak: 5m}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from covey_server.console.builder.grammar import Field, Group, Node, Rows, tree
from covey_server.errors import Invalid

MAX_VALUES = 4000
_WIDTH = 110
_KEY = re.compile(r"^\s*(?P<key>[A-Za-z0-9._-]+)\s*=\s*(?P<values>.*?)\s*$")


def read(form: Mapping[str, str]) -> dict[str, Any]:
    """The file's mapping. A number that is none is kept as it was written, so that whoever reads the file names it."""
    given = {name: value for name, value in list(form.items())[:MAX_VALUES] if value.strip()}
    return _read_group(tree(), "", given)


def write(document: Mapping[str, Any]) -> str:
    """As YAML: mappings of nothing but plain values stand on one line."""
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=None
    )


def shown(document: Any) -> dict[str, Any]:
    """A file's mapping for the form. What does not fit the grammar is left out; reading the file names it."""
    return _shown_group(tree(), document) if isinstance(document, dict) else {}


def changed(document: dict[str, Any], add: str, drop: str) -> dict[str, Any]:
    """The mapping with an empty row more at the path `add`, or without the row at `drop` (`stages.2`)."""
    if add:
        _list_at(document, add.split(".")).append({})
    if drop:
        path = drop.split(".")
        rows = _list_at(document, path[:-1])
        if path[-1].isdecimal() and int(path[-1]) < len(rows):
            del rows[int(path[-1])]
    return document


def _list_at(document: dict[str, Any], path: list[str]) -> list[Any]:
    """The list of rows at a path, made if it is not there. Raises `Invalid` for a path that the grammar does not have."""
    node: Node = tree()
    here: Any = document
    for step, name in enumerate(path):
        if isinstance(node, Rows) and name.isdecimal() and len(name) < 5 and int(name) < node.most:
            while len(here) <= int(name):
                here.append({})
            node, here = node.item, here[int(name)]
            continue
        child = next((one for one in node.children if one.name == name), None) if isinstance(node, Group) else None
        if not isinstance(child, Group | Rows) or (step == len(path) - 1 and not isinstance(child, Rows)):
            break
        node, here = child, here.setdefault(name, [] if isinstance(child, Rows) else {})
    else:
        return here if isinstance(here, list) else []
    raise Invalid(f"the campaign file has no list {'.'.join(path)[:80]!r}")


# --- form to file --------------------------------------------------------------------------------------------------------


def _read_group(group: Group, prefix: str, given: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for child in group.children:
        value = _read(child, f"{prefix}{child.name}", given)
        if value is not None:
            found[child.name] = value
    return found


def _read(node: Node, path: str, given: Mapping[str, str]) -> Any:
    if isinstance(node, Rows):
        return [_read_group(node.item, f"{path}.{index}.", given) for index in _indexes(path, given)] or None
    if isinstance(node, Group):
        inside = _read_group(node, f"{path}.", given)
        # Of an optional group the checkbox counts, and whatever stands in it.
        return inside if inside or f"{path}.on" in given else None
    text = given.get(path, "").strip()
    if not text or (node.kind == "days" and set(text.split()) == set(node.default.split())):
        return None
    return _value(node, text)


def _indexes(path: str, given: Mapping[str, str]) -> list[int]:
    start = f"{path}."
    found = {name[len(start) :].partition(".")[0] for name in given if name.startswith(start)}
    return sorted(int(index) for index in found if index.isdecimal() and len(index) < 5)


def _value(field: Field, text: str) -> Any:
    if field.kind == "flag":
        return True
    if field.kind == "number":
        return _number(text)
    if field.kind in ("names", "days"):
        return text.replace(",", " ").split()
    if field.kind == "numbers":
        return [_number(one) for one in text.replace(",", " ").split()]
    if field.kind == "condition":
        return _selector(text)
    return text


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _selector(text: str) -> dict[str, Any] | str:
    """Lines of KEY = VALUE, VALUE. What is no such line is kept as text, for the reader of the file to complain of."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        match = _KEY.match(line)
        if match is None:
            return text
        values = [_plain(match["key"], one.strip()) for one in match["values"].split(",") if one.strip()]
        found[match["key"]] = values[0] if len(values) == 1 else values
    return found


def _plain(key: str, text: str) -> Any:
    """A label is a text; facts may be numbers, true or false."""
    if not key.startswith("facts.") and key != "simulated":
        return text
    if text in ("true", "false"):
        return text == "true"
    value = _number(text)
    return value if str(value) == text else text


# --- file to form --------------------------------------------------------------------------------------------------------


def _shown_group(group: Group, value: Any) -> dict[str, Any]:
    if group.key == "CampaignSpec.on_breach" and isinstance(value, str):
        value = {"action": value}
    if not isinstance(value, dict):
        return {}
    found: dict[str, Any] = {}
    for child in group.children:
        if child.name not in value or value[child.name] is None:
            continue
        inside = value[child.name]
        if isinstance(child, Rows):
            rows = [inside] if isinstance(inside, dict) else inside
            found[child.name] = [_shown_group(child.item, row) for row in rows] if isinstance(rows, list) else []
        elif isinstance(child, Group):
            found[child.name] = _shown_group(child, inside)
        else:
            found[child.name] = _text(child, inside)
    return found


def _text(field: Field, value: Any) -> str:
    if field.kind == "flag":
        return "yes" if value is True else ""
    if field.kind == "condition" and isinstance(value, dict):
        return "\n".join(f"{key} = {_listed(one)}" for key, one in value.items())
    return _listed(value, " ")


def _listed(value: Any, between: str = ", ") -> str:
    if isinstance(value, list):
        return between.join(_listed(one) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Dumper(yaml.SafeDumper):
    """Never writes aliases, which the reader of campaign files refuses."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True
