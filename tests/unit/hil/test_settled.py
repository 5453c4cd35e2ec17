"""When the demo and the acceptance suite may go on: every build has come to an end, or waits for a builder that is not here."""

from __future__ import annotations

from typing import Any, cast

import pytest

from covey_client.api import Client
from covey_hil.acceptance import settled


class Builds:
    """The one method of the client that is asked."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self._found = found

    def builds(self, **_: str) -> list[dict[str, Any]]:
        return self._found


def build(state: str, waiting_for: str = "") -> dict[str, Any]:
    return {"state": state, "waiting_for": waiting_for}


WAITS = build("queued", "a builder for tensorrt-fp16-sm87 (none has come); its graph is still to be checked")


@pytest.mark.parametrize(
    ("builds", "done"),
    [
        ([], False),
        ([build("built"), build("refused"), build("checked")], True),
        ([build("built"), WAITS, build("checked")], True),
        # A check that is still to come is a build that is still to come.
        ([build("built"), WAITS, build("queued")], False),
        ([build("built"), WAITS, build("building")], False),
    ],
)
def test_settled(builds: list[dict[str, Any]], done: bool) -> None:
    assert settled(cast("Client", Builds(builds)), "1.0") is done
