"""`covey whoami`, `covey console`: who one is, and the way into the console."""

from __future__ import annotations

from covey_client.arguments import OK, Adder, Run
from covey_client.output import moment


def add(commands: Adder) -> None:
    commands.command("whoami", _whoami, "show whose token is used, and its role")
    commands.command("console", _console, "print an address that opens the console in a browser, once")


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
