"""`covey-convert targets` and `toolchain`: what this machine can build, and what it lacks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from covey_converters import catalogue, toolchain
from covey_converters.commands.output import print_json, progress, say


def targets(options: argparse.Namespace) -> int:
    found = catalogue.targets()
    if options.json:
        print_json(found)
    else:
        for one in found:
            say(f"{one.target:22} {'can be built here' if one.buildable else one.missing}")
    return 0


def list_(options: argparse.Namespace) -> int:
    found = [toolchain.find(name, _places(options)) for name in toolchain.names()]
    if options.json:
        print_json([toolchain.as_json(one) for one in found])
    else:
        for one in found:
            state = (
                "not installed"
                if one.folder is None
                else f"{'installed' if one.current else 'outdated'} in {one.folder}"
            )
            say(f"{one.name}: {state}")
    return 0


def install(options: argparse.Namespace) -> int:
    with progress() as shown:
        task = shown.add_task(options.name, total=None)
        folder = _places(options)[0]
        done = toolchain.install(options.name, folder, lambda step: shown.update(task, description=step))
    if options.json:
        print_json(toolchain.as_json(done))
    else:
        say(f"{done.name}: installed in {done.folder}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    places = _places(options)
    found = [toolchain.find(name, places) for name in toolchain.names()]
    problems = {one.name: toolchain.doctor(one) for one in found}
    if options.json:
        print_json(problems)
    else:
        for name, problem in problems.items():
            say(f"{name}: {problem or 'works'}")
    wanted = [one.name for one in found if one.folder is not None or one.name not in toolchain.OPTIONAL]
    return 1 if any(problems[name] for name in wanted) else 0


def _places(options: argparse.Namespace) -> list[Path]:
    return [options.dir] if options.dir else toolchain.places(os.environ)
