"""Writes what the docs quote from the code, so that neither can drift from the other; a test compares them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from covey_contract.manifest import MANIFEST_TYPE
from covey_contract.messages import ASSIGNMENT_TYPE, COMMAND_TYPE, TIME_TYPE
from covey_contract.reasons import Reason
from covey_contract.topics import Down, Up
from covey_profiles import load_profiles
from covey_profiles.page import page
from covey_server.routes import application
from covey_server.settings import describe


def write_docs(folder: Path) -> list[Path]:
    """Regenerate the generated files in `folder`; their paths."""
    written = []
    for name, text in generated().items():
        path = folder / name
        path.write_text(text)
        written.append(path)
    return written


def generated() -> dict[str, str]:
    """The generated files by name."""
    return {
        "configuration.md": configuration(),
        "reference.md": reference(),
        "profiles.md": page(load_profiles()),
        "openapi.json": openapi(),
    }


def configuration() -> str:
    rows = [
        f"| `{row.name}` | {row.type} | {_cell(row.default)} | {row.help} | `{row.option}` | `{row.environment}` |"
        for row in describe()
    ]
    return "\n".join(
        [
            "# Configuration of the server",
            "",
            "Generated from the code by `./dev docs`. Later sources win: defaults, a TOML file (`covey-server run --config FILE`),",
            "environment variables, options of `covey-server run`. `covey-server settings` prints this table.",
            "",
            "| setting | type | default | what it does | option | environment |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Agents take their few settings as options of `covey-agent run`; see `covey-agent run --help`.",
            "",
        ]
    )


def reference() -> str:
    return "\n".join(
        [
            "# Names on the wire",
            "",
            "Generated from the contract by `./dev docs`. What they mean together is told in [protocol.md](protocol.md).",
            "",
            "## Topics",
            "",
            *_bullets(f"`covey/DEVICE/up/{what}`: {_says(what)}" for what in Up),
            *_bullets(f"`covey/DEVICE/down/{what}`: {_says(what)}" for what in _TO_ONE),
            "- `covey/_all/down/blk/BUILD`: blocks of a build, to every device that listens",
            "- `covey/_all/down/cast/BUILD`: `Broadcast`, how their broadcast stands",
            "",
            "## Types of signed payloads",
            "",
            *_bullets(f"`{name}`" for name in (MANIFEST_TYPE, ASSIGNMENT_TYPE, COMMAND_TYPE, TIME_TYPE)),
            "",
            "## Reasons",
            "",
            *_bullets(f"`{reason}`" for reason in Reason),
            "",
        ]
    )


def openapi() -> str:
    return json.dumps(application().openapi(), indent=1, sort_keys=True) + "\n"


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


_TO_ONE = tuple(what for what in Down if what is not Down.BROADCAST)
_MESSAGES = {
    Up.HELLO: "`Hello`, on every connect",
    Up.REPORT: "`Report`, one transition of a deployment",
    Up.TELEMETRY: "`Telemetry`, one window of measurements",
    Up.STATUS: "`Status`, heartbeat and last will",
    Up.BLOCK_REQUEST: "`BlockRequest`, up to 16 missing blocks",
    Up.REPLY: "`Reply` to a command",
    Up.TIME: "`TimeRequest`, on every connect",
    Up.METADATA: "`MetadataRequest`, where the repository cannot be reached otherwise",
    Up.RENEWAL: "`RenewRequest`, where the server cannot be reached otherwise",
    Down.ASSIGNMENT: "`Order`: the director's assignment and the release key's manifest",
    Down.COMMAND: "a `Command` in its envelope",
    Down.BLOCK: "one block of a build, binary",
    Down.ACK: "`Ack`: the records that are stored",
    Down.TIME: "a `TimeReply` in its envelope",
    Down.METADATA: "`MetadataPart`, a part of the answer to a `MetadataRequest`",
    Down.RENEWAL: "`RenewReply`, the answer to a `RenewRequest`",
}


def _says(what: Up | Down) -> str:
    return _MESSAGES[what]
