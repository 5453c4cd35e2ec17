"""`covey-server keys …`: who may release, and who may order. Works on the data folder, whether the server runs or not.

Two kinds of sub-commands. Those that hold a private key (`new`, `public`, `sign`) need no data folder and run on any machine, one without
a network among them. Those that change the repository (`ceremony`, `rotate`, `delegate`, `renew`, `publish`) write a *document* where the
keys that must sign it are elsewhere, and publish at once where they are all here.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root

from covey_server.clock import system_clock
from covey_server.errors import Invalid, NotFound, ServerError
from covey_server.fleet.durable import write_durably
from covey_server.releases import ceremony
from covey_server.releases.bootstrap import releases_of, secrets_from
from covey_server.releases.ceremony import RootChange, Trustees
from covey_server.releases.director import install_director, new_director
from covey_server.releases.errors import BadMetadata
from covey_server.releases.keyring import (
    Secrets,
    make_key_file,
    open_signer,
    public_key_at,
    read_public,
    write_public,
)
from covey_server.releases.policy import DIRECTOR, ROOT, SNAPSHOT, TARGETS, TIME_FORMAT, TIMESTAMP
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import metadata_name
from covey_server.settings import Settings

_ONLINE = (SNAPSHOT, TIMESTAMP)
AddSettings = Callable[..., None]
LoadSettings = Callable[[argparse.Namespace], Settings]


def add_commands(parser: argparse.ArgumentParser, add_settings: AddSettings, load: LoadSettings) -> None:
    """The sub-commands of `covey-server keys`. `add_settings` and `load` are the command line's own."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], words: str, *, data: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words)
        sub.set_defaults(command=_guarded(run, load if data else None))
        if data:
            add_settings(sub, "data", "key_secret_file", "release_timestamp_s", "release_snapshot_s")
        return sub

    sub = command("status", _status, "Who signs what, with which keys, and until when it lasts.")
    sub.add_argument("--json", action="store_true")

    sub = command("new", _new, "Make an Ed25519 key under a passphrase: FILE, and FILE.pub to hand over.", data=False)
    sub.add_argument("file", type=Path)
    sub.add_argument("--no-passphrase", action="store_true", help="for a machine that guards the file otherwise")
    _add_secret(sub)

    sub = command("public", _public, "Write FILE.pub of a key in a token or a key management service.", data=False)
    sub.add_argument(
        "uri", help="hsm:ID?label=TOKEN, awskms:ID, gcpkms:ID, azurekms://VAULT.vault.azure.net/keys/KEY, hv:KEY"
    )
    sub.add_argument("file", type=Path)
    _add_secret(sub)

    sub = command("sign", _sign, "Sign a document with a key of your own, here, without any server.", data=False)
    sub.add_argument("document", type=Path)
    sub.add_argument(
        "--key", required=True, metavar="FILE", help="the key's file, or its .pub if that says where the key is"
    )
    _add_secret(sub)

    sub = command(
        "ceremony", _ceremony, "Begin: online keys here, and root.json and targets.json to be signed elsewhere."
    )
    sub.add_argument("--root", type=Path, action="append", required=True, metavar="FILE.pub")
    sub.add_argument("--root-threshold", type=int, default=2, metavar="N")
    sub.add_argument(
        "--targets", type=Path, action="append", metavar="FILE.pub", help="those of root, unless others are named"
    )
    sub.add_argument("--targets-threshold", type=int, default=2, metavar="N")
    sub.add_argument(
        "--publisher", action="append", default=[], metavar="MODEL=FILE.pub", help="who releases this family"
    )
    _add_out(sub)

    sub = command(
        "rotate", _rotate, "Other keys for a role: new ones here for snapshot, timestamp, director; else those named."
    )
    sub.add_argument("role", choices=(ROOT, TARGETS, *_ONLINE, "director"))
    sub.add_argument(
        "--key", type=Path, action="append", default=[], metavar="FILE.pub", help="all that shall be trusted"
    )
    sub.add_argument("--threshold", type=int, metavar="N")
    _add_out(sub)

    sub = command("delegate", _delegate, "Let these keys, and no others, release a family of models.")
    sub.add_argument("model")
    sub.add_argument("--key", type=Path, action="append", required=True, metavar="FILE.pub")
    sub.add_argument("--threshold", type=int, default=1, metavar="N")
    _add_out(sub)

    sub = command("renew", _renew, "Root or targets as they are, for another term.")
    sub.add_argument("role", choices=(ROOT, TARGETS))
    _add_out(sub)

    sub = command("publish", _publish, "Publish documents that are signed: root.json, targets.json, or both.")
    sub.add_argument("documents", type=Path, nargs="+", metavar="FILE")

    sub = command("withdraw", _withdraw, "Take a version's releases back: no device accepts them any longer.")
    sub.add_argument("model")
    sub.add_argument("version")

    sub = command("export", _export, "Write every root that was published, for devices and for safe keeping.")
    sub.add_argument("folder", type=Path)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where documents are written (%(default)s)"
    )


def _add_secret(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--secret-file", default="", metavar="FILE", help="the passphrase or PIN; else it is asked for")


def _guarded(run: Callable[..., int], load: LoadSettings | None) -> Callable[[argparse.Namespace], int]:
    """Files that cannot be read or written are one line, as every other error is."""

    def command(options: argparse.Namespace) -> int:
        try:
            return (
                run(options)
                if load is None
                else run(options, releases_of(load(options), system_clock, _secrets(options)))
            )
        except OSError as error:
            raise ServerError(f"{error.filename or 'a file'}: {error.strerror or error}") from error

    return command


def _secrets(options: argparse.Namespace) -> Secrets:
    file = getattr(options, "secret_file", "") or getattr(options, "key_secret_file", "") or ""
    return secrets_from(file) if file or not sys.stdin.isatty() else (lambda what: getpass.getpass(f"{what}: "))


# --- away from the server ---------------------------------------------------------------------------------------------


def _new(options: argparse.Namespace) -> int:
    passphrase = None
    if not options.no_passphrase:
        try:
            passphrase = _secrets(options)(f"passphrase for {options.file.name}")
        except ValueError as error:
            raise Invalid(f"{error}; or say --no-passphrase") from error
        if len(passphrase) < 8:
            raise Invalid("a passphrase has at least 8 characters")
    key = make_key_file(options.file, passphrase)
    public = _public_name(options.file)
    write_public(public, key, "")
    print(f"{public}  {key.keyid}")
    return 0


def _public(options: argparse.Namespace) -> int:
    try:
        uri, key = public_key_at(options.uri, _secrets(options))
    except BadMetadata:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of signer raises what its library does
        raise ServerError(f"{options.uri} cannot be reached: {error}") from error
    write_public(options.file, key, uri)
    print(f"{options.file}  {key.keyid}")
    return 0


def _sign(options: argparse.Namespace) -> int:
    document = _read_document(options.document)
    named = Path(options.key)
    key, uri = read_public(named if named.suffix == ".pub" else _public_name(named))
    try:
        signer = open_signer(uri or f"file:{named.resolve()}", key, _secrets(options), Path())
        document.sign(signer, append=True)
    except Exception as error:  # noqa: BLE001 - likewise
        raise ServerError(f"{options.key} does not sign: {error}") from error
    _write_document(options.document, document)
    print(f"{_title(document)}: {len(document.signatures)} signatures")
    return 0


# --- on the server ----------------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace, releases: Releases) -> int:
    rows = releases.status()
    trusted = releases.edition().root.signed.unrecognized_fields[DIRECTOR]["keys"]
    if options.json:
        document = [{**vars(row), "expires": row.expires.strftime(TIME_FORMAT)} for row in rows]
        print(json.dumps({"roles": document, "director": sorted(trusted)}, indent=2))
        return 0
    print(f"{'role':28} {'version':>7}  {'expires':20}  keys")
    for row in rows:
        state = "EXPIRED" if row.expired else "ALARM" if row.alarm else "due" if row.due else ""
        keys = ", ".join(f"{name if uri else name[:12] + ' (elsewhere)'}" for name, uri in row.keys)
        print(
            f"{row.role:28} {row.version:7}  {row.expires.strftime(TIME_FORMAT):20}  {row.threshold} of {keys} {state}".rstrip()
        )
    for keyid in sorted(trusted):
        record = releases.keyring.record(keyid)
        print(f"{'director (orders)':28} {'':7}  {'':20}  {record.name if record else keyid[:12] + ' (elsewhere)'}")
    return 0


def _ceremony(options: argparse.Namespace, releases: Releases) -> int:
    if releases.exists:
        raise BadMetadata("there is a repository already; `keys rotate` changes its keys")
    root = _trustees(options.root, options.root_threshold)
    targets = _trustees(options.targets or options.root, options.targets_threshold)
    families = {}
    for word in options.publisher:
        model, equals, file = word.partition("=")
        if not equals:
            raise Invalid(f"{word!r}: --publisher takes MODEL=FILE.pub")
        families[model] = _publishers(releases, [Path(file)], 1)
    online = {role: Trustees([releases.keyring.named(role) or releases.keyring.make(role)]) for role in _ONLINE}
    director = new_director(releases)
    documents = releases.propose_first({ROOT: root, TARGETS: targets, **online}, Trustees([director]), families)
    _hand_over(options.out, documents)
    return 0


def _rotate(options: argparse.Namespace, releases: Releases) -> int:
    if options.role == "director":
        change = RootChange(director=Trustees([new_director(releases)]))
    elif options.role in _ONLINE:
        number = releases.edition().root.signed.version + 1
        name = f"{options.role}-{number}"
        change = RootChange({options.role: Trustees([releases.keyring.named(name) or releases.keyring.make(name)])})
    else:
        if not options.key:
            raise Invalid(f"name all keys that shall be trusted for {options.role} by --key FILE.pub")
        threshold = options.threshold or releases.edition().root.signed.roles[options.role].threshold
        change = RootChange({options.role: _trustees(options.key, threshold)})
    return _finish(options.out, releases, releases.propose_root(change))


def _delegate(options: argparse.Namespace, releases: Releases) -> int:
    trustees = _publishers(releases, options.key, options.threshold)
    return _finish(options.out, releases, releases.propose_delegation(options.model, trustees))


def _renew(options: argparse.Namespace, releases: Releases) -> int:
    document: Metadata[Any]
    document = releases.propose_root(RootChange()) if options.role == ROOT else releases.propose_targets()
    return _finish(options.out, releases, document)


def _publish(options: argparse.Namespace, releases: Releases) -> int:
    documents = [_read_document(path) for path in options.documents]
    _check_kept_for_us(releases, documents)
    if releases.exists:
        releases.accept(*documents)
    else:
        first = {document.signed.type: document for document in documents}
        if ROOT not in first:
            raise BadMetadata("the first to be published is a root")
        releases.create(first[ROOT], first.get(TARGETS))
    for document in documents:
        print(f"published {_title(document)}")
        if isinstance(document.signed, Root) and install_director(releases, document.signed):
            print("the key for orders is another now: restart the server")
    return 0


def _withdraw(options: argparse.Namespace, releases: Releases) -> int:
    number = releases.withdraw(options.model, options.version)
    if not number:
        raise NotFound(f"{options.model} {options.version} is not released")
    print(
        f"{number} builds of {options.model} {options.version} are withdrawn; devices that run them go on until they are ordered away"
    )
    return 0


def _export(options: argparse.Namespace, releases: Releases) -> int:
    options.folder.mkdir(parents=True, exist_ok=True)
    for version in range(1, releases.shelf.newest_root() + 1):
        name = metadata_name(ROOT, version)
        write_durably(options.folder / name, releases.shelf.metadata(name))
    print(f"{releases.shelf.newest_root()} roots in {options.folder}")
    return 0


def _finish(out: Path, releases: Releases, document: Metadata[Any]) -> int:
    """Publish where all keys are here (development); hand over where they are not."""
    releases.sign_here(document)
    try:
        releases.accept(document)
    except BadMetadata:
        _hand_over(out, [document])
        return 0
    print(f"published {_title(document)}")
    if isinstance(document.signed, Root) and install_director(releases, document.signed):
        print("the key for orders is another now: restart the server")
    return 0


def _hand_over(out: Path, documents: Sequence[Metadata[Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for document in documents:
        path = out / f"{document.signed.type}.json"
        _write_document(path, document)
        print(f"{path}: {_title(document)}, {len(document.signatures)} signatures")
    print(
        "to be signed by `covey-server keys sign FILE --key KEY` wherever the keys are, then `covey-server keys publish FILE…`"
    )


def _check_kept_for_us(releases: Releases, documents: Sequence[Metadata[Any]]) -> None:
    """A root whose online keys are not here would lock this server out of its own repository."""
    for document in documents:
        if isinstance(document.signed, Root):
            for role in _ONLINE:
                if not any(releases.keyring.has(keyid) for keyid in document.signed.roles[role].keyids):
                    raise BadMetadata(f"this root trusts no key for {role} that is in this server's keyring")


def _publishers(releases: Releases, files: Sequence[Path], threshold: int) -> Trustees:
    """Publishers sign here, at every release: their private keys must be reachable."""
    for file in files:
        key, uri = read_public(file)
        if not uri and not releases.keyring.has(key.keyid):
            private = file.with_suffix(".pem")
            if not private.exists():
                raise BadMetadata(f"{file} does not say where its private key is, and {private} is not there")
            uri = f"file:{private.resolve()}"
        if uri and not releases.keyring.has(key.keyid):
            releases.keyring.add(key, file.stem, uri)
    return _trustees(files, threshold)


def _trustees(files: Sequence[Path], threshold: int) -> Trustees:
    return Trustees([read_public(file)[0] for file in files], threshold)


def _public_name(path: Path) -> Path:
    return path.with_suffix(".pub")


def _read_document(path: Path) -> Metadata[Any]:
    with path.open("rb") as file:
        return ceremony.parse(file.read(1 << 20))


def _write_document(path: Path, document: Metadata[Any]) -> None:
    write_durably(path, document.to_bytes() + os.linesep.encode())


def _title(document: Metadata[Any]) -> str:
    return f"{document.signed.type} version {document.signed.version}"
