"""The API's document in `docs/` is the one that the server has."""

from __future__ import annotations

import json
from pathlib import Path

from covey_server import routes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_document_is_of_this_server() -> None:
    said = json.loads(PAGE.read_text(encoding="utf-8"))
    assert said == json.loads(json.dumps(routes.application().openapi())), (
        "run: covey-server openapi > docs/openapi.json"
    )
