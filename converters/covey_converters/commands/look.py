"""`covey-convert inspect` and `verify`: looking without building."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from covey_contract.building import MANIFEST_FILE
from covey_converters import build_view
from covey_converters.commands.given import limits_of, spec_of
from covey_converters.commands.output import print_json, progress, say
from covey_converters.errors import BadInputError
from covey_converters.folder import read_manifest
from covey_converters.isolation import inspect_isolated, verify_isolated
from covey_converters.spec import BuildSpec


def inspect(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, progress() as shown:
        task = shown.add_task(options.source.name, total=None)
        found = inspect_isolated(
            spec_of(options, Path(work)),
            limits_of(options),
            lambda step: shown.update(task, description=step),
        )
    if options.json:
        print_json(found)
    else:
        say("\n".join(build_view.inspection(options.source.name, found)))
    return 0


def verify(options: argparse.Namespace) -> int:
    folders = _build_folders(options.out)
    limits = limits_of(options)
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, progress() as shown:
        task = shown.add_task("verify", total=len(folders))
        for folder in folders:
            shown.update(task, description=folder.name)
            manifest = read_manifest(folder)
            spec = BuildSpec(
                model=manifest.model,
                version=manifest.version,
                target=manifest.target,
                source=str(folder.resolve()),
                out=work,
                work=work,
            )
            verdicts.append(verify_isolated(spec, limits))
            shown.advance(task)
    if options.json:
        print_json(verdicts)
    else:
        for verdict in verdicts:
            largest = ", ".join(f"{name} within {error:.3g}" for name, error in verdict.largest_error.items())
            say(f"{verdict.target}: {'; '.join(verdict.problems) or f'good ({largest})'}")
    return 1 if any(verdict.problems for verdict in verdicts) else 0


def _build_folders(out: Path) -> list[Path]:
    folders = (
        [out] if (out / MANIFEST_FILE).exists() else sorted(path.parent for path in out.glob(f"*/{MANIFEST_FILE}"))
    )
    if not folders:
        raise BadInputError(f"{out}: no build there (no {MANIFEST_FILE})")
    return folders
