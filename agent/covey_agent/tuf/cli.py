"""`covey-agent tuf`: the update client as a command, by the protocol of the public conformance suite.

    covey-agent tuf --metadata-dir D init ROOT.json
    covey-agent tuf --metadata-url U --metadata-dir D refresh
    covey-agent tuf --metadata-url U --metadata-dir D --target-name P --target-base-url T --target-dir X download
    covey-agent tuf --metadata-url U --metadata-dir D --target-name P find        (our own: what is released, as JSON)

0: done; 1: refused, not there or not to be had; one line on standard error says why.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from covey_agent.errors import AgentError, UsageError

if TYPE_CHECKING:
    from covey_agent.tuf.updater import Updater


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and its three sub-commands. Nothing heavy is imported for them."""
    parser.add_argument(
        "--metadata-dir", type=Path, required=True, metavar="DIR", help="where trusted metadata is kept"
    )
    parser.add_argument("--metadata-url", metavar="URL", help="of the repository's metadata: http, https or file")
    parser.add_argument("--target-name", metavar="PATH", help="the target's path in the repository")
    parser.add_argument("--target-base-url", metavar="URL", help="of the repository's targets")
    parser.add_argument("--target-dir", type=Path, metavar="DIR", help="where verified targets are put")
    parser.add_argument("--root", type=Path, metavar="FILE", help="the root that trust begins with, instead of `init`")
    parser.add_argument("--floor-ms", type=int, default=0, metavar="MS", help="it is not earlier than this (Unix time)")
    parser.add_argument("--time-ms", type=int, metavar="MS", help="it is that time, whatever the system's clock says")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="trust this authority for https, not the system's")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="begin to trust a root")
    init.add_argument("root", type=Path, metavar="ROOT.json")
    init.set_defaults(run=_init)
    commands.add_parser("refresh", help="update the top-level metadata").set_defaults(run=_refresh)
    commands.add_parser("find", help="update, find a target, print what is said of it").set_defaults(run=_find)
    commands.add_parser("download", help="update, find a target, fetch and verify it").set_defaults(run=_download)


def run(options: argparse.Namespace) -> int:
    for library in ("tuf", "securesystemslib"):
        logging.getLogger(library).setLevel(logging.WARNING)
    code: int = options.run(options)
    return code


def _init(options: argparse.Namespace) -> int:
    from covey_agent.tuf.folder import MetadataFolder
    from covey_agent.tuf.updater import Limits, initialise

    try:
        with options.root.open("rb") as file:
            root = file.read(Limits().root + 1)
    except OSError as error:
        raise AgentError(f"{options.root} cannot be read: {error.strerror}") from error
    folder = MetadataFolder(options.metadata_dir)
    with folder.locked():
        initialise(folder, root)
    return 0


def _refresh(options: argparse.Namespace) -> int:
    with _updating(options) as updater:
        updater.refresh()
    return 0


def _find(options: argparse.Namespace) -> int:
    """For the control process: one JSON object on standard output, a refusal too."""
    import msgspec

    from covey_agent.tuf.errors import RepositoryError
    from covey_agent.tuf.vouching import Answer

    name = _needed(options, "target_name")
    try:
        with _updating(options) as updater:
            trusted = updater.refresh()
            target = updater.find(name)
            time_ms = updater.time_floor_ms()
    except RepositoryError as error:
        answer = Answer(reason=error.reason, detail=str(error)[:1900])
    else:
        keys = trusted.root.unrecognized_fields.get("x-covey-director", {}).get("keys", {})
        answer = Answer(
            length=target.length,
            sha256=target.hashes.get("sha256", ""),
            fields=(target.custom or {}).get("covey", {}),
            director=tuple(key["keyval"]["public"] for key in keys.values()),
            time_ms=time_ms,
        )
    print(msgspec.json.encode(answer).decode())
    return 0


def _download(options: argparse.Namespace) -> int:
    from covey_agent.tuf.source import Patience, source_at
    from covey_agent.tuf.updater import target_place

    name = _needed(options, "target_name")
    base, folder = _needed(options, "target_base_url"), Path(_needed(options, "target_dir"))
    targets = source_at(base, Patience(total_s=3600.0), time.monotonic, _context(options))
    with _updating(options) as updater, targets as source:
        updater.refresh()
        updater.download(updater.find(name), source, target_place(folder, name))
    return 0


@contextlib.contextmanager
def _updating(options: argparse.Namespace) -> Iterator[Updater]:
    """The updater over the options' folder and address, for as long as the folder is locked."""
    from covey_agent.tuf.folder import MetadataFolder
    from covey_agent.tuf.source import Patience, source_at
    from covey_agent.tuf.updater import Updater

    url = _needed(options, "metadata_url")
    folder = MetadataFolder(options.metadata_dir)
    with folder.locked(), source_at(url, Patience(), time.monotonic, _context(options)) as source:
        floor_ms = max(folder.time_floor_ms(), options.floor_ms)
        floor = datetime.fromtimestamp(floor_ms / 1000, timezone.utc)
        now = datetime.now(timezone.utc)
        if options.time_ms is not None:
            now = datetime.fromtimestamp(options.time_ms / 1000, timezone.utc)
        yield Updater(folder, source, max(now, floor), embedded=_embedded(options))


def _embedded(options: argparse.Namespace) -> bytes | None:
    from covey_agent.tuf.updater import Limits

    if options.root is None:
        return None
    try:
        with options.root.open("rb") as file:
            data: bytes = file.read(Limits().root + 1)
    except OSError as error:
        raise AgentError(f"{options.root} cannot be read: {error.strerror}") from error
    return data


def _needed(options: argparse.Namespace, name: str) -> str:
    value = getattr(options, name)
    if value is None:
        raise UsageError(f"--{name.replace('_', '-')} is needed here")
    return str(value)


def _context(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(options.ca))
    except OSError as error:
        raise AgentError(f"{options.ca} cannot be used as an authority: {error}") from error
