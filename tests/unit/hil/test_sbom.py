"""Bills of materials: what the lock pins is in them, valid, and nothing that is not installed as locked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from covey_hil.sbom import Pinned, SbomError, document, read_lock, write_sboms

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "requirements" / "dev.txt"


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sbom")
    return {path.name.split(".")[0]: json.loads(path.read_text()) for path in write_sboms(LOCK, folder)}


def test_each_has_what_its_room_needs_and_no_more(bills: dict[str, Any]) -> None:
    names = {bill: {part["name"] for part in document["components"]} for bill, document in bills.items()}
    assert {"msgspec", "paho-mqtt", "tuf", "bsdiff4"} <= names["covey-agent"]
    assert {"fastapi", "SQLAlchemy"} <= names["covey-server"]
    assert not {"fastapi", "SQLAlchemy", "pytest", "mypy"} & names["covey-agent"]
    assert "pytest" not in names["covey-server"]


def test_parts_have_versions_hashes_and_a_place_in_the_graph(bills: dict[str, Any]) -> None:
    pins = read_lock(LOCK.read_text())
    for bill in bills.values():
        for part in bill["components"]:
            if part["name"].startswith("covey-"):
                continue
            pinned = pins[part["purl"].removeprefix("pkg:pypi/").split("@")[0]]
            assert part["version"] == pinned.version
            assert {prop["value"] for prop in part["properties"]} == set(pinned.hashes)
        referred = {one["ref"] for one in bill["dependencies"]}
        assert {part["bom-ref"] for part in bill["components"]} <= referred


def test_extras_are_optional(bills: dict[str, Any]) -> None:
    scopes = {part["name"]: part["scope"] for part in bills["covey-agent"]["components"]}
    assert (scopes["msgspec"], scopes["onnxruntime"]) == ("required", "optional")


def test_the_same_environment_has_the_same_serial_number(bills: dict[str, Any]) -> None:
    again = json.loads(document("covey-agent", read_lock(LOCK.read_text())))
    assert again["serialNumber"] == bills["covey-agent"]["serialNumber"]


@pytest.mark.parametrize(("pins", "word"), [({}, "does not name it"), ({"msgspec": Pinned("0.0.1", ())}, "says 0.0.1")])
def test_what_is_not_locked_is_told(pins: dict[str, Pinned], word: str) -> None:
    whole = read_lock(LOCK.read_text())
    del whole["msgspec"]
    with pytest.raises(SbomError, match=word):
        document("covey-agent", {**whole, **pins})
