"""`covey-agent tuf`: the update client as a command, by the protocol of the public conformance suite.

    covey-agent tuf --metadata-dir D init ROOT.json
    covey-agent tuf --metadata-url U --metadata-dir D refresh
    covey-agent tuf --metadata-url U --metadata-dir D --target-name P --target-base-url T --target-dir X download

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
    parser.add_argument("--ca", type=Path, metavar="FILE", help="trust this authority for https, not the system's")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="begin to trust a root")
    init.add_argument("root", type=Path, metavar="ROOT.json")
    init.set_defaults(run=_init)
    commands.add_parser("refresh", help="update the top-level metadata").set_defaults(run=_refresh)
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
        floor = datetime.fromtimestamp(folder.time_floor_ms() / 1000, timezone.utc)
        yield Updater(folder, source, max(datetime.now(timezone.utc), floor))


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
