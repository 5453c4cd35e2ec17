"""`covey-convert`: builds a source model for its targets, and shows what came out. Stands alone, without a server.

Results go to standard output (`--json`: one JSON value), progress to standard error. Exit status 0: every asked target was built and
passed, or could only be checked and is fit; 1: something was not; 2: bad input or usage, said in one line.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from covey_client.errors import ClientError
from covey_contract.errors import ContractError
from covey_converters import __version__
from covey_converters.commands.given import DEFAULT_TARGETS
from covey_converters.errors import ConvertError
from covey_converters.spec import RECIPE_SECONDS, Limits

_COMMANDS = "covey_converters.commands"
Run = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    module, _, name = options.command.partition(":")
    try:
        # Only what is asked for is imported: a build should not wait for the worker's HTTP client.
        command: Run = getattr(importlib.import_module(f"{_COMMANDS}.{module}"), name)
        return command(options)
    except (ConvertError, ContractError, ClientError) as error:
        print(f"covey-convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"covey-convert: {error.filename or ''} {error.strerror or error}".replace("  ", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="covey-convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    as_json, source, limits = _as_json(), _source(), _limits()
    _build(commands, [source, limits, as_json])
    _tune(commands, [source, limits, as_json])
    _look(commands, source, limits, as_json)
    _toolchains(commands, as_json)
    _worker(commands, limits)
    return parser


# --- options that several commands have ------------------------------------------------------------------------------------


def _as_json() -> argparse.ArgumentParser:
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON value on standard output")
    return as_json


def _source() -> argparse.ArgumentParser:
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", type=Path, help="a model: ONNX, PyTorch, TensorFlow, Keras or TFLite")
    source.add_argument("--calibration", type=Path, metavar="NPZ", help="samples for INT8 ranges: one array per input")
    source.add_argument(
        "--evaluation", type=Path, metavar="NPZ", help="held-out samples, with `labels` where there are"
    )
    source.add_argument(
        "--metric",
        default="",
        metavar="METRIC",
        help="what a build is judged by: classification, detection:LAYOUT, embedding, or a function module:function "
        "(default: what the evaluation declares, or its labels)",
    )
    source.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=1x3x224x224", help="the shape of an input that is open"
    )
    source.add_argument(
        "--max-batch",
        type=int,
        default=1,
        metavar="N",
        help="builds that compute up to so many waiting requests at once, where the model allows it (%(default)d: none)",
    )
    source.add_argument(
        "--measure-seconds", type=float, default=0.5, help="of inference, for source and build each (%(default)g)"
    )
    source.add_argument(
        "--recipe-seconds",
        type=float,
        default=RECIPE_SECONDS,
        help="deadline of each recipe, after which the next one is tried (%(default)g)",
    )
    return source


def _limits() -> argparse.ArgumentParser:
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--seconds", type=float, default=Limits().seconds, help="deadline of each target (%(default)g)")
    limits.add_argument(
        "--memory", type=int, default=Limits().memory_mb, metavar="MB", help="address space of a build (%(default)d)"
    )
    return limits


# --- the commands ----------------------------------------------------------------------------------------------------------


def _build(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    build = commands.add_parser(
        "build",
        parents=parents,
        help="build a model for its targets; exit code 0 if all were built, or checked where they cannot be run",
    )
    build.add_argument(
        "--target", action="append", metavar="TARGET", help=f"repeatable (default: {', '.join(DEFAULT_TARGETS)})"
    )
    build.add_argument("--recipe", default="", help="this one alone, as `tune` names it (with one --target)")
    build.add_argument("-o", "--out", type=Path, required=True, help="each build becomes OUT/TARGET")
    build.add_argument("--budget", type=float, default=0.01, help="highest absolute drop of accuracy (%(default)g)")
    build.add_argument(
        "--labels", type=Path, metavar="TXT", help="names of the classes, one per line; travels with the build"
    )
    build.add_argument("--model", help="name of the model (default: from the file's name)")
    build.add_argument("--model-version", default="1", metavar="VERSION", help="(%(default)s)")
    build.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="for applications; repeatable"
    )
    build.set_defaults(command="build:run")


def _tune(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    tuning = commands.add_parser(
        "tune",
        parents=parents,
        help="try every recipe of every target; print which builds are best in latency, size and accuracy",
    )
    tuning.add_argument("--target", action="append", metavar="TARGET", help="repeatable (default: all of CPUs)")
    tuning.add_argument("--budget", type=float, default=0.01, help="highest absolute drop of accuracy (%(default)g)")
    tuning.add_argument("--plot", type=Path, metavar="SVG", help="where the plot goes (default: MODEL-tune.svg)")
    tuning.set_defaults(command="tune:run")


def _look(
    commands: Commands,
    source: argparse.ArgumentParser,
    limits: argparse.ArgumentParser,
    as_json: argparse.ArgumentParser,
) -> None:
    inspect = commands.add_parser(
        "inspect", parents=[source, limits, as_json], help="say what a model is, without building"
    )
    inspect.set_defaults(command="look:inspect")

    verify = commands.add_parser("verify", parents=[limits, as_json], help="check builds: digests, then golden vectors")
    verify.add_argument("out", type=Path, help="a build's folder, or a folder of builds")
    verify.set_defaults(command="look:verify")


def _toolchains(commands: Commands, as_json: argparse.ArgumentParser) -> None:
    targets = commands.add_parser(
        "targets", parents=[as_json], help="list the targets, and what this machine can build"
    )
    targets.set_defaults(command="toolchains:targets")

    chains = commands.add_parser("toolchain", help="toolchains with an environment of their own")
    actions = chains.add_subparsers(required=True, metavar="ACTION")
    for action, command, text in (
        ("list", "toolchains:list_", "which there are"),
        ("install", "toolchains:install", "make or renew one"),
        ("doctor", "toolchains:doctor", "do they work?"),
    ):
        sub = actions.add_parser(action, parents=[as_json], help=text)
        sub.add_argument(
            "--dir",
            type=Path,
            help="where environments lie (default: $COVEY_TOOLCHAINS, .toolchains, the user's cache)",
        )
        if action == "install":
            sub.add_argument("name")
        sub.set_defaults(command=command)


def _worker(commands: Commands, limits: argparse.ArgumentParser) -> None:
    worker = commands.add_parser(
        "worker", parents=[limits], help="lease build jobs from a server (token in $COVEY_TOKEN)"
    )
    worker.add_argument("--server", required=True, metavar="URL")
    worker.add_argument("--ca", type=Path, metavar="FILE", help="the fleet's CA in PEM, for https (or $COVEY_CA)")
    worker.add_argument(
        "--targets",
        metavar="A,B",
        help="what to build; `*` at the end stands for anything (default: all possible here)",
    )
    worker.add_argument("--name", help="(default: the host's name)")
    worker.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="a function of this machine that jobs may be judged by; repeatable",
    )
    worker.add_argument("--once", action="store_true", help="one job at most, then end")
    worker.add_argument("--work", type=Path, help="folder for downloads and scratch files (default: a temporary one)")
    worker.set_defaults(command="worker:run")
