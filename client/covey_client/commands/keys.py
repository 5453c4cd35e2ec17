"""`covey keys`: who signs releases and orders, and until when that lasts. What changes it is done on the server's machine, by
`covey-server keys`: it needs the private keys, which do not travel."""

from __future__ import annotations

from typing import Any

from covey_client.arguments import OK, Adder, Run
from covey_client.output import moment


def add(commands: Adder) -> None:
    group = commands.family("keys", "the keys that releases and orders are signed with")
    group.command("status", _status, "who signs what, and until when it lasts")


def _status(run: Run) -> int:
    keys = run.client.keys()

    def show() -> None:
        rows = [
            (
                row["role"],
                row["version"],
                moment(row["expires_ms"]),
                f"{row['threshold']} of {_names(row['keys'])}",
                _state(row),
            )
            for row in keys["roles"]
        ]
        rows.append(("director (orders)", "", "", _names(keys["director"]), ""))
        run.out.table(("role", "version", "expires", "keys", "state"), rows)

    run.out.result(keys, show)
    return OK


def _names(keys: list[dict[str, Any]]) -> str:
    words = []
    for key in keys:
        name = key["name"] if key["at_hand"] else f"{key['name'][:12]} (elsewhere)"
        words.append(f"{name} (DEVELOPMENT)" if key["development"] else name)
    return ", ".join(words)


def _state(row: dict[str, Any]) -> str:
    return "EXPIRED" if row["expired"] else "ALARM" if row["alarm"] else "due" if row["due"] else "good"
