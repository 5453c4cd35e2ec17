"""`covey`: the operators' command line. The composition root of the client: options, account, output, and every error as one line."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from covey_client import __version__
from covey_client.api import ApiError, Client, ClientError, Unreachable, Untrusted
from covey_client.arguments import (
    BROKEN_PIPE,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OK,
    UNREACHABLE,
    USAGE,
    Adder,
    Handler,
    Parser,
    Run,
    UsageError,
    duration,
)
from covey_client.commands import account, audit, campaigns, devices, groups, keys, models, people, webhooks
from covey_client.commands.people import ask_secret
from covey_client.output import Output, plain
from covey_client.settings import Account, SettingsError, find_account, find_ca, read_stored, read_token, store
from covey_client.transport import check_url

_DESCRIPTION = """Covey delivers AI models to fleets of edge devices.

The server is the one that `covey login` stored, or COVEY_SERVER with COVEY_TOKEN, or --server with
--token-file; on the server's own machine, --data FOLDER is enough. A server that is reached over https
has a certificate of its fleet's CA: --ca FILE or COVEY_CA names that CA, `covey login --ca FILE` keeps it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors are one line on standard error, never a traceback."""
    # Known before the arguments are read, since they may be what is wrong.
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser().parse_args(arguments)
        code = _without_server(options)
        if code is None:
            code = _on_server(options, as_json)
        # A reader that has gone away shows here, and not when Python ends.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("covey: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be written to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ClientError, OSError) as error:
        return _failed(error, as_json)


def _without_server(options: argparse.Namespace) -> int | None:
    """Commands that need no server, or not with these options; None for all others."""
    if options.handler in _WITHOUT_SERVER:
        code: int = options.handler(options)
        return code
    local: Callable[[argparse.Namespace], int | None] | None = getattr(options, "without_server", None)
    return None if local is None else local(options)


def _on_server(options: argparse.Namespace, as_json: bool) -> int:
    found = find_account(
        os.environ,
        server=getattr(options, "server", None),
        token_file=getattr(options, "token_file", None),
        data=getattr(options, "data", None),
        ca=getattr(options, "ca", None),
    )
    handler: Handler = options.handler
    with Client(found.url, found.token, getattr(options, "request_timeout", 15.0), ca=found.ca) as client:
        return handler(Run(options, Output(as_json), client))


def _failed(error: ClientError | OSError, as_json: bool) -> int:
    """Say what is wrong; the exit code for it."""
    line, code = " ".join(str(error).split()), FAILED
    document: dict[str, object] = {"detail": line, "code": _CODES.get(type(error), "failed")}
    if isinstance(error, ApiError):
        document = {"status": error.status, "title": error.title, "detail": line, "code": error.code, **error.extra}
        if error.status == 401:
            line = line.rstrip(".") + "; log in with `covey login URL`, or give a token"
    elif isinstance(error, Unreachable):
        code = UNREACHABLE
    elif isinstance(error, SettingsError | UsageError | Untrusted):
        code = USAGE
    elif isinstance(error, OSError):
        code = USAGE
        line = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else line
        document["detail"] = line
    if as_json:
        print(json.dumps({"error": document}, ensure_ascii=False))
    print(f"covey: {plain(line)}", file=sys.stderr)
    return code


def _login(options: argparse.Namespace) -> int:
    """Check the token with the server, then keep both, and the CA that the server's certificate was checked against."""
    token_file: Path | None = getattr(options, "token_file", None)
    data: Path | None = getattr(options, "data", None)
    ca: Path | None = getattr(options, "ca", None)
    if ca is None and data is None and options.url is not None:
        ca = _known_ca(options.url)
    if data is not None:
        found = find_account({}, server=options.url, data=data, token_file=token_file, ca=ca)
    elif options.url is None:
        raise SettingsError("covey login needs the server's address, e.g. http://127.0.0.1:8080, or --data FOLDER")
    elif token_file is not None:
        found = Account(options.url, read_token(token_file), ca)
    elif options.name is not None:
        found = _by_password(options.url, options.name, ca)
    elif sys.stdin.isatty():
        found = Account(options.url, getpass.getpass("Token: ").strip(), ca)
    else:
        found = Account(options.url, sys.stdin.readline(4096).strip(), ca)
    with Client(found.url, found.token, ca=found.ca) as client:
        who = client.whoami()
        path = store(os.environ, Account(client.url, found.token, found.ca))
        answer = {**who, "server": client.url}
    if getattr(options, "json", False):
        print(json.dumps(answer))
    else:
        print(plain(f"logged in to {answer['server']} as {who['name']} ({who['role']}); kept in {path}"))
    return OK


def _by_password(url: str, name: str, ca: Path | None) -> Account:
    """A token of this person, good for as long as a session of the console."""
    with Client(url, ca=ca) as client:
        made = client.admin.log_in(name, ask_secret("Password: "))
        return Account(client.url, str(made["token"]), ca)


def _known_ca(url: str) -> Path | None:
    """COVEY_CA, or what an earlier login kept for this server; a login that cannot be read is about to be replaced."""
    try:
        stored = read_stored(os.environ)
    except SettingsError:
        stored = None
    return find_ca(os.environ, check_url(url), stored)


def _version(options: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if getattr(options, "json", False) else f"covey {__version__}")
    return OK


# What programs may decide by where there is no problem document.
_CODES: dict[type[Exception], str] = {
    Unreachable: "unreachable",
    Untrusted: "untrusted",
    SettingsError: "settings",
    UsageError: "usage",
}
_WITHOUT_SERVER = (_login, _version)


def _common() -> Parser:
    """The options that every command takes, before or after its name."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    shared = common.add_argument_group("for every command")
    shared.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    shared.add_argument("--server", metavar="URL", help="the server (or COVEY_SERVER)")
    shared.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a file that holds the API token (or COVEY_TOKEN)"
    )
    shared.add_argument("--data", type=Path, metavar="FOLDER", help="the data folder of a server on this machine")
    shared.add_argument("--ca", type=Path, metavar="FILE", help="the fleet's CA in PEM, for https (or COVEY_CA)")
    shared.add_argument("--request-timeout", type=duration, metavar="S", help="for each request (default 15s)")
    return common


def _parser() -> argparse.ArgumentParser:
    common = _common()
    parser = Parser(
        prog="covey",
        description=_DESCRIPTION,
        epilog=EXIT_CODES,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Adder(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"), common)
    for noun in (devices, groups, models, campaigns, people, webhooks, keys, audit, account):
        noun.add(commands)
    login = commands.command(
        "login",
        _login,
        "check a token (asked for, or read from standard input) and keep it; or log in by name and password",
    )
    login.add_argument("url", nargs="?", metavar="URL")
    login.add_argument("--name", help="log in as this person; the password is asked for, or read from standard input")
    commands.command("version", _version, "print the version of this client")
    return parser


if __name__ == "__main__":
    sys.exit(main())
