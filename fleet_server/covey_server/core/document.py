"""YAML or JSON written by people, read so that every later complaint can name the line.

A `Document` holds plain values (dict, list, str, int, float, bool, None) and knows on which line each of them stands. Size and
depth are bounded; aliases, tags and repeated keys are refused, so that a small file cannot become a large one and nothing is
silently overwritten.

>>> document = parse("stages:\\n  - soak: 15s\\n")
>>> document.value, document.line(("stages", 0, "soak"))
({'stages': [{'soak': '15s'}]}, 2)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
MAX_DEPTH = 10
MAX_NODES = 10_000

Path = tuple[str | int, ...]

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}


class DocumentError(Exception):
    """The document cannot be read, or does not say what it must. `line` counts from 1; `field` is a path such as
    `stages[1].soak`, empty for the document as a whole."""

    def __init__(self, message: str, *, line: int | None = None, field: str = "") -> None:
        self.message, self.line, self.field = message, line, field
        place = f"line {line}: " if line is not None else ""
        what = f"{field}: " if field else ""
        super().__init__(f"{place}{what}{message}")


@dataclass(frozen=True)
class Document:
    """Plain values, and the line of each by its path."""

    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int | None:
        """The line of the value at `path`, or of the nearest thing around it that the document has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def error(self, path: Path, message: str) -> DocumentError:
        return DocumentError(message, line=self.line(path), field=show_path(path))


def show_path(path: Path) -> str:
    """`("stages", 1, "soak")` as `stages[1].soak`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse(data: str | bytes, *, is_json: bool = False) -> Document:
    """Raises `DocumentError` for anything that is too large, too deep, or no plain YAML (JSON if `is_json`)."""
    text = _decode(data)
    try:
        # JSON is YAML but for tabs, which JSON allows between tokens only; so the lines come from the same place.
        yaml_text = text.replace("\t", " ") if is_json else text
        value = _parse_json(text) if is_json else None
        _check_events(yaml_text)
        lines: dict[Path, int] = {}
        from_yaml = _Builder(lines).build(yaml_text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        kind = "JSON" if is_json else "YAML"
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(f"not {kind}: {what}", line=mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {error}") from error
    return Document(value if is_json else from_yaml, lines)


def _decode(data: str | bytes) -> str:
    raw = data.encode(errors="replace") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise DocumentError(f"{len(raw)} bytes; at most {MAX_BYTES}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DocumentError("not UTF-8", line=line) from error
    if not text.strip():
        raise DocumentError("the document is empty")
    return text


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON: {error.msg}", line=error.lineno) from error
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _check_events(text: str) -> None:
    """Bound depth and number of nodes before anything is built from them; refuse aliases."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent):
            raise DocumentError("aliases are not allowed; write the value out", line=line)
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise DocumentError(f"nested deeper than {MAX_DEPTH} levels", line=line)
        if nodes > MAX_NODES:
            raise DocumentError(f"more than {MAX_NODES} values", line=line)


class _Builder:
    """Turns one composed document into plain values, noting lines on the way."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self._lines = lines

    def build(self, text: str) -> Any:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise DocumentError("the document is empty")
            return self._value(loader, node, ())
        finally:
            loader.dispose()

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._value(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise DocumentError(f"the tag {node.tag} is not allowed", line=line, field=show_path(path))
        if node.tag == "tag:yaml.org,2002:timestamp":  # a version may look like a date
            return node.value
        if node.tag not in _PLAIN_TAGS:
            raise DocumentError(f"the tag {node.tag} is not allowed", line=line, field=show_path(path))
        try:
            return loader.construct_object(node)
        except (ValueError, OverflowError, ArithmeticError) as error:
            message = f"{node.value[:40]!r} is not a value: {error}"
            raise DocumentError(message, line=line, field=show_path(path)) from error

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise DocumentError("a key must be a plain word", line=line, field=show_path(path))
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                raise DocumentError("is given twice", line=line, field=show_path(here))
            self._lines[here] = line
            values[key] = self._value(loader, value_node, here)
        return values
