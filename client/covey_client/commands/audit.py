"""`covey audit …`: who did what, and whether the log of it is as it was written; of an export also without the server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from covey_client.arguments import FAILED, OK, Adder, Run, file, since
from covey_client.errors import ClientError
from covey_client.output import Output, moment, size
from covey_contract.audit_chain import Checked, Entry, Head, check

_MAX_LINE = 1 << 20


def add(commands: Adder) -> None:
    audit = commands.family("audit", "the log of who did what")
    listing = audit.command("list", _list, "list the newest entries")
    listing.add_argument("--limit", "-n", type=int, default=50)
    listing.add_argument("--who", metavar="NAME")
    listing.add_argument("--action", help="as campaign.start; with a dot at its end all of a kind: `campaign.`")
    listing.add_argument("--object", metavar="NAME")
    listing.add_argument(
        "--since", type=since, metavar="TIME", help="7d for the last seven days, or 2030-01-31[T12:00]"
    )
    listing.add_argument("--until", type=since, metavar="TIME")
    export = audit.command("export", _export, "write the whole log to a file, one entry a line, to be kept elsewhere")
    export.add_argument("file", type=Path, metavar="FILE")
    verify = audit.command(
        "verify",
        _verify,
        "check that no entry was changed, removed or inserted (exit code 1 if one was)",
        epilog="With FILE that export is checked, without the server. With --since FILE it is also checked that the log (the\n"
        "server's, or that of FILE) still holds all that an earlier export held: what its own chain cannot show is that\n"
        "its end was cut off, or all of it written anew.",
    )
    verify.add_argument("file", nargs="?", type=file, metavar="FILE", help="an export")
    verify.add_argument("--since", type=file, metavar="FILE", help="an earlier export")
    verify.set_defaults(without_server=_verify_file)


def _list(run: Run) -> int:
    options = run.options
    found = run.client.admin.audit(
        max(1, options.limit), options.who, options.action, options.object, options.since, options.until
    )
    rows = [
        [
            one["id"],
            moment(one["at_ms"]),
            one["who"],
            one["origin"],
            one["action"],
            one["object"],
            json.dumps(one["detail"]),
        ]
        for one in found
    ]
    columns = ["id", "when", "who", "from", "did", "to", "detail"]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _export(run: Run) -> int:
    target: Path = run.options.file
    written = run.client.admin.export_audit(target)
    checked = check(read_export(target))
    document = {"file": str(target), "size": written, **_told(checked)}
    words = (
        f"{checked.entries} entries in {target} ({size(written)}); the last is {checked.head.id} {checked.head.hash}"
    )
    run.out.result(document, lambda: run.out.say(words))
    return _code(checked, run.out)


def _verify(run: Run) -> int:
    """On the server."""
    earlier = run.options.since
    if earlier is None:
        verdict = run.client.admin.verify_audit()
    else:
        before = check(read_export(earlier))
        if before.flaw is not None:
            raise ClientError(f"{earlier} is no export to go by: {before.flaw}")
        verdict = run.client.admin.verify_audit(before.head.id or None, before.head.hash)
    words = f"whole: {verdict['entries']} entries" if verdict["whole"] else f"broken: {_flaw_words(verdict)}"
    run.out.result(verdict, lambda: run.out.say(words))
    return OK if verdict["whole"] else FAILED


def _verify_file(options: argparse.Namespace) -> int | None:
    """Of an export, by this machine alone; None if there is none and the server is to do it."""
    if options.file is None:
        return None
    out = Output(getattr(options, "json", False))
    heads: list[Head] = []
    if options.since is not None:
        before = check(read_export(options.since))
        if before.flaw is not None:
            raise ClientError(f"{options.since} is no export to go by: {before.flaw}")
        heads.append(before.head)
    checked = check(read_export(options.file), *heads)
    words = f"broken: {checked.flaw}" if checked.flaw is not None else f"whole: {checked.entries} entries"
    out.result(_told(checked), lambda: out.say(words))
    return OK if checked.flaw is None else FAILED


def read_export(path: Path) -> Iterator[Entry]:
    """The entries of an export. Raises `ClientError` if a line is none."""
    with path.open("rb") as opened:
        number = 0
        while line := opened.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise ClientError(f"{path} line {number}: it is longer than any entry")
            try:
                yield msgspec.json.decode(line, type=Entry)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ClientError(f"{path} line {number} is no entry: {error}") from error


def _told(checked: Checked) -> dict[str, object]:
    return {
        "whole": checked.flaw is None,
        "entries": checked.entries,
        "first_bad": None if checked.flaw is None else checked.flaw.id,
        "kind": None if checked.flaw is None else checked.flaw.kind,
        "head": checked.head.hash,
    }


def _flaw_words(verdict: dict[str, object]) -> str:
    return f"entry {verdict['first_bad']} was {verdict.get('kind') or 'changed'}"


def _code(checked: Checked, out: Output) -> int:
    if checked.flaw is None:
        return OK
    out.note(f"the log is broken: {checked.flaw}")
    return FAILED
