"""`covey`: the operators' command line. The composition root of the client: options, account, output, and every error as one line."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from covey_client import __version__
from covey_client.api import ApiError, Client, ClientError, Unreachable
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
    Run,
    duration,
)
from covey_client.commands import account, campaigns, devices, groups, models
from covey_client.output import Output, plain
from covey_client.settings import Account, SettingsError, find_account, read_token, store

_DESCRIPTION = """Covey delivers AI models to fleets of edge devices.

The server is the one that `covey login` stored, or COVEY_SERVER with COVEY_TOKEN, or --server with
--token-file; on the server's own machine, --data FOLDER is enough."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors are one line on standard error, never a traceback."""
    options = _parser().parse_args(arguments)
    as_json = getattr(options, "json", False)
    try:
        code: int = options.handler(options) if options.handler in _WITHOUT_SERVER else _on_server(options, as_json)
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


def _on_server(options: argparse.Namespace, as_json: bool) -> int:
    found = find_account(
        os.environ,
        server=getattr(options, "server", None),
        token_file=getattr(options, "token_file", None),
        data=getattr(options, "data", None),
    )
    handler: Handler = options.handler
    with Client(found.url, found.token, getattr(options, "request_timeout", 15.0)) as client:
        return handler(Run(options, Output(as_json), client))


def _failed(error: ClientError | OSError, as_json: bool) -> int:
    """Say what is wrong; the exit code for it."""
    line, code = " ".join(str(error).split()), FAILED
    document: dict[str, object] = {"detail": line}
    if isinstance(error, ApiError):
        document = {"status": error.status, "title": error.title, "detail": line, "code": error.code, **error.extra}
        if error.status == 401:
            line += "; log in with `covey login URL`, or give a token"
    elif isinstance(error, Unreachable):
        code = UNREACHABLE
    elif isinstance(error, SettingsError):
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
    """Check the token with the server, then keep both."""
    token_file: Path | None = getattr(options, "token_file", None)
    data: Path | None = getattr(options, "data", None)
    if data is not None:
        found = find_account({}, server=options.url, data=data, token_file=token_file)
    elif options.url is None:
        raise SettingsError("covey login needs the server's address, e.g. http://127.0.0.1:8080, or --data FOLDER")
    elif token_file is not None:
        found = Account(options.url, read_token(token_file))
    elif sys.stdin.isatty():
        found = Account(options.url, getpass.getpass("Token: ").strip())
    else:
        found = Account(options.url, sys.stdin.readline(4096).strip())
    with Client(found.url, found.token) as client:
        who = client.whoami()
        path = store(os.environ, Account(client.url, found.token))
        answer = {**who, "server": client.url}
    if getattr(options, "json", False):
        print(json.dumps(answer))
    else:
        print(plain(f"logged in to {answer['server']} as {who['name']} ({who['role']}); kept in {path}"))
    return OK


def _version(options: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if getattr(options, "json", False) else f"covey {__version__}")
    return OK


_WITHOUT_SERVER = (_login, _version)


def _common() -> argparse.ArgumentParser:
    """The options that every command takes, before or after its name."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared = common.add_argument_group("for every command")
    shared.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    shared.add_argument("--server", metavar="URL", help="the server (or COVEY_SERVER)")
    shared.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a file that holds the API token (or COVEY_TOKEN)"
    )
    shared.add_argument("--data", type=Path, metavar="FOLDER", help="the data folder of a server on this machine")
    shared.add_argument("--request-timeout", type=duration, metavar="S", help="for each request (default 15s)")
    return common


def _parser() -> argparse.ArgumentParser:
    common = _common()
    parser = argparse.ArgumentParser(
        prog="covey",
        description=_DESCRIPTION,
        epilog=EXIT_CODES,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Adder(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"), common)
    for noun in (devices, groups, models, campaigns, account):
        noun.add(commands)
    login = commands.command("login", _login, "check a token (asked for, or read from standard input) and keep it")
    login.add_argument("url", nargs="?", metavar="URL")
    commands.command("version", _version, "print the version of this client")
    return parser


if __name__ == "__main__":
    sys.exit(main())
