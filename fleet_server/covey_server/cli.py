"""`covey-server`: run a server; look at its settings, its API, its tokens."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import covey_contract
from covey_server import audit, logs, routes, settings, tokens
from covey_server.audit import Actor
from covey_server.clock import system_clock
from covey_server.db.engine import Database
from covey_server.errors import EXIT_FAILED, EXIT_SETTINGS, ServerError, StartError
from covey_server.people.roles import ROLES
from covey_server.releases import cli as keys_cli
from covey_server.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ended as asked, 1 failed, 2 bad options or settings, 3 port or data folder in use."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.command(options)
    except StartError as error:
        return _fail(str(error), error.exit_code)
    except ServerError as error:
        return _fail(error.detail, EXIT_FAILED)
    return code


def _fail(words: str, code: int) -> int:
    print(f"covey-server: {words}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    found = _settings(options)
    logs.configure(found)
    # Imported here, since the other commands need none of the server's parts.
    from covey_server.serving import serve

    serve(found, os.environ)
    return 0


def _show_settings(options: argparse.Namespace) -> int:
    rows = settings.describe()
    if options.markdown:
        print("| setting | type | default | what it sets |\n|---|---|---|---|")
        for row in rows:
            print(f"| `{row.name}` | {row.type} | {f'`{row.default}`' if row.default else ''} | {row.help} |")
        return 0
    for row in rows:
        print(f"{row.name} ({row.type}, default {row.default or 'empty'})\n    {row.help}")
        print(f"    {row.option}  {row.environment}")
    return 0


def _create_token(options: argparse.Namespace) -> int:
    found = _settings(options)
    if not found.database_url and not (found.data / "covey.db").exists():
        raise StartError(f"there is no server's data in {found.data}; start the server once, or name it by --data")
    database = Database(found.database)
    database.migrate()
    now_ms = system_clock()
    seconds = options.ttl_s or found.token_s
    with database.session() as session:
        token, secret = tokens.create(session, options.name, options.role, now_ms, now_ms + seconds * 1000)
        detail = {"role": options.role, "expires_ms": token.expires_ms}
        audit.record(session, Actor("operator", "admin", "command line"), "token.create", token.name, detail, now_ms)
    database.close()
    print(secret)
    return 0


def _show_api(_: argparse.Namespace) -> int:
    print(json.dumps(routes.application().openapi(), indent=2))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    given = {row.name: getattr(options, row.name, None) for row in settings.describe()}
    return settings.load(options.config, os.environ, {name: text for name, text in given.items() if text is not None})


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, as every other error is."""

    def error(self, message: str) -> NoReturn:
        raise StartError(f"{message} (`{self.prog} --help` tells more)", EXIT_SETTINGS)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("covey-server", description="Covey's fleet server.")
    parser.add_argument("--version", action="version", version=f"covey-server {covey_contract.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the server until SIGTERM")
    run.set_defaults(command=_run)
    _add_settings(run)

    show = commands.add_parser("settings", help="print the table of settings")
    show.add_argument("--markdown", action="store_true", help="as a table for the documentation")
    show.set_defaults(command=_show_settings)

    token = commands.add_parser("token", help="API tokens, on the data folder itself")
    create = token.add_subparsers(required=True, metavar="COMMAND").add_parser("create", help="make one and print it")
    create.add_argument("name", type=_token_name)
    create.add_argument("--role", choices=ROLES, required=True)
    create.add_argument("--ttl-s", type=_seconds, help="how long it is good, in seconds")
    create.set_defaults(command=_create_token)
    _add_settings(create, "data", "database_url", "token_s")

    keys = commands.add_parser("keys", help="who may release and who may order: status, ceremony, rotate, export …")
    keys_cli.add_commands(keys, _add_settings, _settings)

    commands.add_parser("openapi", help="print the API's OpenAPI document").set_defaults(command=_show_api)
    return parser


def _add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    for row in settings.describe():
        if not names or row.name in names:
            text = f"{row.help} ({row.type}; default {row.default or 'empty'})".replace("%", "%%")
            parser.add_argument(row.option, dest=row.name, metavar=row.type.upper().replace(" ", "-"), help=text)


def _token_name(text: str) -> str:
    if not tokens.is_name(text):
        raise argparse.ArgumentTypeError("1 to 64 of A-Z a-z 0-9 . _ @ -, beginning with a letter or digit")
    return text


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 60 <= int(text) <= 3650 * 86_400:
        raise argparse.ArgumentTypeError("a whole number from 60")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
