"""`covey person …` and `covey token …`"""

from __future__ import annotations

import getpass
import sys

from covey_client.arguments import OK, Adder, Run, UsageError, duration
from covey_client.output import Json, ago, moment

ROLES = ("viewer", "operator", "approver", "admin")
_MAX_PASSWORD = 1024


def add(commands: Adder) -> None:
    people = commands.family("person", "people who log in by name and password")
    people.command("list", _list, "list people")
    adding = people.command("add", _add, "add a person and print the invitation by which they choose a password")
    adding.add_argument("name")
    adding.add_argument("--role", choices=ROLES, required=True)
    adding.add_argument("--email")
    adding.add_argument("--notify", action="append", metavar="EVENT", help="an event that is mailed; repeat for more")
    role = people.command("set-role", _set_role, "give a person another role, at once")
    role.add_argument("name")
    role.add_argument("role", choices=ROLES)
    told = people.command("set-mail", _set_mail, "say where and of what a person is told by e-mail")
    told.add_argument("name")
    told.add_argument("--email", help="an empty one takes it away")
    told.add_argument("--notify", action="append", metavar="EVENT", help="repeat for more; `none` for none")
    people.command("disable", _disable, "log a person out and let them in no more").add_argument("name")
    people.command("enable", _enable, "let a disabled person in again").add_argument("name")
    people.command("invite", _invite, "print a new invitation, for a password that was forgotten").add_argument("name")
    out = people.command("logout", _log_out, "end all sessions of a person, or your own")
    out.add_argument("name", nargs="?")
    people.command("password", _password, "choose another password for yourself (asked for, or three lines of input)")

    tokens = commands.family("token", "API tokens, of people and of pipelines")
    tokens.command("list", _list_tokens, "list tokens: your own, with the role admin all")
    create = tokens.command("create", _create_token, "make a token and print it; it is never shown again")
    create.add_argument("name")
    create.add_argument("--role", choices=(*ROLES, "worker"), required=True)
    create.add_argument(
        "--ttl", type=duration, metavar="TIME", help="how long it is good, as 90d (the server's default)"
    )
    create.add_argument("--owner", metavar="PERSON", help="whose it is; for admin by default nobody's: a pipeline's")
    create.add_argument("--model", action="append", help="a model that it may change, and no other; repeat for more")
    tokens.command("revoke", _revoke_token, "end a token, and the sessions made with it").add_argument("name")


def _list(run: Run) -> int:
    found = run.client.admin.people()
    columns = ["name", "role", "state", "e-mail", "last login"]
    rows = [[one["name"], one["role"], _state(one), one["email"], ago(one["last_login_ms"])] for one in found]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _state(person: Json) -> str:
    if person["disabled_ms"] is not None:
        return "disabled"
    return "active" if person["has_password"] else "invited"


def _add(run: Run) -> int:
    options = run.options
    person = run.client.admin.add_person(options.name, options.role, options.email, options.notify or ())
    return _invitation(run, {**person, "invitation": _with_url(run, person["invitation"])})


def _invite(run: Run) -> int:
    made = run.client.admin.invite(run.options.name)
    return _invitation(run, {"name": run.options.name, "invitation": _with_url(run, made)})


def _with_url(run: Run, invitation: Json) -> Json:
    return {**invitation, "url": f"{run.client.url}/invitation?code={invitation['code']}"}


def _invitation(run: Run, document: Json) -> int:
    def show() -> None:
        run.out.say(document["invitation"]["url"])
        run.out.note(
            f"{document['name']} chooses a password there; once, until {moment(document['invitation']['expires_ms'])}"
        )

    run.out.result(document, show)
    return OK


def _changed(run: Run, words: str, **changes: object) -> int:
    person = run.client.admin.change_person(run.options.name, **changes)
    run.out.result(person, lambda: run.out.say(f"{person['name']} {words}"))
    return OK


def _set_role(run: Run) -> int:
    return _changed(run, f"has the role {run.options.role}", role=run.options.role)


def _set_mail(run: Run) -> int:
    changes: dict[str, object] = {}
    if run.options.email is not None:
        changes["email"] = run.options.email or None
    if run.options.notify is not None:
        changes["notify"] = [] if run.options.notify == ["none"] else run.options.notify
    if not changes:
        raise UsageError("give --email or --notify")
    return _changed(run, "is told as you say", **changes)


def _disable(run: Run) -> int:
    return _changed(run, "is disabled", disabled=True)


def _enable(run: Run) -> int:
    return _changed(run, "may log in", disabled=False)


def _log_out(run: Run) -> int:
    ended = run.client.admin.log_out_everywhere(run.options.name)
    words = f"{ended['sessions']} sessions and {ended['tokens']} logins of the command line ended"
    run.out.result(ended, lambda: run.out.say(words))
    return OK


def _password(run: Run) -> int:
    current, new, again = (ask_secret(f"{what} password: ") for what in ("Current", "New", "New, again:"))
    if new != again:
        raise UsageError("the two new passwords are not the same")
    run.client.admin.change_password(current, new)
    run.out.result({"changed": True}, lambda: run.out.say("the password is changed; your other sessions have ended"))
    return OK


def ask_secret(prompt: str) -> str:
    """From the terminal without showing it, else the next line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt)
    return sys.stdin.readline(_MAX_PASSWORD).rstrip("\n")


# --- tokens ----------------------------------------------------------------------------------------------------------


def _list_tokens(run: Run) -> int:
    found = run.client.admin.tokens()
    columns = ["name", "role", "owner", "models", "good until", "last used"]
    rows = [
        [
            one["name"],
            one["role"],
            one["owner"],
            ", ".join(one["models"]) if one["models"] else None,
            "revoked" if one["revoked_ms"] is not None else moment(one["expires_ms"]),
            ago(one["last_used_ms"]),
        ]
        for one in found
    ]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _create_token(run: Run) -> int:
    options = run.options
    ttl_s = None if options.ttl is None else int(options.ttl)
    made = run.client.admin.create_token(options.name, options.role, ttl_s, options.owner, options.model)

    def show() -> None:
        run.out.say(made["token"])
        run.out.note(f"{made['name']} ({made['role']}), good until {moment(made['expires_ms'])}; it is not shown again")

    run.out.result(made, show)
    return OK


def _revoke_token(run: Run) -> int:
    run.client.admin.revoke_token(run.options.name)
    run.out.result({"revoked": run.options.name}, lambda: run.out.say(f"{run.options.name} is revoked"))
    return OK
