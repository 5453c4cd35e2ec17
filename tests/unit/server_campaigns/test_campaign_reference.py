"""`docs/campaigns.md` names every field of the campaign file, no other, each with an example that is read and a test that exists."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from covey_server.core.spec import CampaignSpec, parse_spec

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "campaigns.md").read_text()
ROWS = dict(re.findall(r"^\| `([a-z_\[\].]+)` \|.*\|([^|]*)\|$", PAGE, re.MULTILINE))
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HEAD = 'name: c\nmodel: m\nversion: "1"\n'
# These fields hold what another part of the page tells of.
ELSEWHERE = ("stages[].gates.", "stages[].pace.")


def structs_in(kind: Any) -> Iterator[tuple[type[msgspec.Struct], bool]]:
    """The structs that a type is made of, and whether they stand in a list."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind, False
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from structs_in(arguments[0])
    elif origin in {typing.Union, types.UnionType}:
        for argument in arguments:
            yield from structs_in(argument)
    elif origin in {tuple, list}:
        for argument in arguments:
            yield from ((struct, True) for struct, _ in structs_in(argument))


def fields_of(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        path = prefix + field.encode_name
        yield path
        inside = dict(structs_in(hints[field.name]))
        for struct, listed in inside.items():
            yield from fields_of(struct, f"{path}[]." if listed else f"{path}.")


def paths_in(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path
            yield from paths_in(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from paths_in(inner, f"{prefix}[]")


FIELDS = {path for path in fields_of(CampaignSpec) if not path.startswith(ELSEWHERE)}


def test_the_page_tells_of_every_field_and_of_no_other() -> None:
    assert set(ROWS) == FIELDS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split(":")[0])
def test_every_example_is_read(block: str) -> None:
    parse_spec(whole(block))


def whole(block: str) -> str:
    stages = "" if re.search(r"^stages:", block, re.MULTILINE) else "stages: [{name: all, percent: 100}]\n"
    return block if block.startswith("name:") else HEAD + block + stages


def test_every_field_has_an_example() -> None:
    shown = {path for block in BLOCKS for path in paths_in(yaml.safe_load(block))}
    assert FIELDS - shown == set()


def test_every_test_that_is_named_exists() -> None:
    folders = ("tests/unit/server_campaigns", "tests/integration/campaigns")
    code = "\n".join(file.read_text() for folder in folders for file in sorted((ROOT / folder).glob("*.py")))
    tests = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    named = {name for row in ROWS.values() for name in re.findall(r"`(test_\w+)`", row)}
    assert named - tests == set()
    assert [path for path, row in ROWS.items() if "`test_" not in row] == []
