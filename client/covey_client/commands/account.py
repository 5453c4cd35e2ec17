"""`covey whoami`, `console`, `audit …`: who one is, and who did what."""

from __future__ import annotations

import json

from covey_client.arguments import FAILED, OK, Adder, Run
from covey_client.output import moment


def add(commands: Adder) -> None:
    commands.command("whoami", _whoami, "show whose token is used, and its role")
    commands.command("console", _console, "print an address that opens the console in a browser, once")
    audit = commands.family("audit", "the log of who did what")
    listing = audit.command("list", _list, "list the newest entries")
    listing.add_argument("--limit", "-n", type=int, default=50)
    audit.command("verify", _verify, "check that no entry was changed or taken away (exit code 1 if one was)")


def _whoami(run: Run) -> int:
    who = {**run.client.whoami(), "server": run.client.url}
    run.out.result(who, lambda: run.out.say(f"{who['name']} ({who['role']}) at {who['server']}"))
    return OK


def _console(run: Run) -> int:
    made = run.client.create_login_code()
    address = f"{run.client.url}/login?code={made['code']}"

    def show() -> None:
        run.out.say(address)
        run.out.note(f"works once, until {moment(made['expires_ms'])}")

    run.out.result({"url": address, "expires_ms": made["expires_ms"]}, show)
    return OK


def _list(run: Run) -> int:
    found = run.client.audit(max(1, run.options.limit))
    rows = [
        [one["id"], moment(one["at_ms"]), one["who"], one["action"], one["object"], json.dumps(one["detail"])]
        for one in found
    ]
    columns = ["id", "when", "who", "did", "to", "detail"]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _verify(run: Run) -> int:
    verdict = run.client.verify_audit()
    words = (
        f"whole: {verdict['entries']} entries"
        if verdict["whole"]
        else f"broken: entry {verdict['first_bad']} does not follow from the one before"
    )
    run.out.result(verdict, lambda: run.out.say(words))
    return OK if verdict["whole"] else FAILED
