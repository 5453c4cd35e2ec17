"""`covey-convert`: builds a source model for its targets, and shows what came out. Stands alone, without a server.

Results go to standard output (`--json`: one JSON value), progress to standard error. Exit status 0: every asked target was built and
passed, or could only be checked and is fit; 1: something was not; 2: bad input or usage, said in one line.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from covey_client.api import Client
from covey_client.errors import ClientError
from covey_contract.building import MANIFEST_FILE, BuildReport, Outcome
from covey_contract.errors import ContractError
from covey_contract.manifest import MODEL_NAME, VERSION_NAME, check_target
from covey_converters import __version__, build_view, catalogue, toolchain, tune, tune_view
from covey_converters.backends import CPU_TARGETS
from covey_converters.errors import BadInputError, ConvertError
from covey_converters.folder import digest_of, read_manifest
from covey_converters.isolation import build_isolated, inspect_isolated, verify_isolated
from covey_converters.jobs import Jobs
from covey_converters.spec import BuildSpec, Limits
from covey_converters.worker import Worker

DEFAULT_TARGETS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp16", "openvino-int8", "tflite-int8")

_GOOD = frozenset({Outcome.BUILT, Outcome.CHECKED})

_people = Console(stderr=True, highlight=False)
_tables = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (ConvertError, ContractError, ClientError) as error:
        print(f"covey-convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"covey-convert: {error.filename or ''} {error.strerror or error}".replace("  ", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="covey-convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON value on standard output")
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
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--seconds", type=float, default=Limits().seconds, help="deadline of each target (%(default)g)")
    limits.add_argument(
        "--memory", type=int, default=Limits().memory_mb, metavar="MB", help="address space of a build (%(default)d)"
    )

    build = commands.add_parser(
        "build",
        parents=[source, limits, as_json],
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
    build.set_defaults(command=_build)

    tuning = commands.add_parser(
        "tune",
        parents=[source, limits, as_json],
        help="try every recipe of every target; print which builds are best in latency, size and accuracy",
    )
    tuning.add_argument("--target", action="append", metavar="TARGET", help="repeatable (default: all of CPUs)")
    tuning.add_argument("--budget", type=float, default=0.01, help="highest absolute drop of accuracy (%(default)g)")
    tuning.add_argument("--plot", type=Path, metavar="SVG", help="where the plot goes (default: MODEL-tune.svg)")
    tuning.add_argument("--measure-seconds", type=float, default=0.5, help="of inference (%(default)g)")
    tuning.set_defaults(command=_tune)

    inspect = commands.add_parser(
        "inspect", parents=[source, limits, as_json], help="say what a model is, without building"
    )
    inspect.set_defaults(command=_inspect)

    verify = commands.add_parser("verify", parents=[limits, as_json], help="check builds: digests, then golden vectors")
    verify.add_argument("out", type=Path, help="a build's folder, or a folder of builds")
    verify.set_defaults(command=_verify)

    targets = commands.add_parser(
        "targets", parents=[as_json], help="list the targets, and what this machine can build"
    )
    targets.set_defaults(command=_targets)

    chains = commands.add_parser("toolchain", help="toolchains with an environment of their own")
    actions = chains.add_subparsers(required=True, metavar="ACTION")
    for action, command, text in (
        ("list", _toolchain_list, "which there are"),
        ("install", _toolchain_install, "make or renew one"),
        ("doctor", _toolchain_doctor, "do they work?"),
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
    worker.set_defaults(command=_worker)
    return parser


# --- build, inspect, verify ----------------------------------------------------------------------------------------------


def _build(options: argparse.Namespace) -> int:
    targets = _checked_targets(options, DEFAULT_TARGETS)
    if options.recipe and len(targets) != 1:
        raise BadInputError("--recipe is one target's: name that target with --target")
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work:
        spec = _spec(options, Path(work))
        limits = Limits(seconds=options.seconds, memory_mb=options.memory)
        with _progress() as progress:
            task = progress.add_task(options.source.name, total=len(targets))
            found = inspect_isolated(spec, limits, lambda step: progress.update(task, description=step))
            reports: list[BuildReport] = []
            for target in targets:
                one = msgspec.structs.replace(spec, target=target, out=str((options.out / target).resolve()))

                def say(step: str, target: str = target) -> None:
                    progress.update(task, description=f"{target}: {step}")

                reports.append(build_isolated(one, limits, say))
                progress.advance(task)
    if options.json:
        _print_json({"source": found, "builds": [_as_json(options.out, report) for report in reports]})
    else:
        _tables.print(build_view.table(reports))
        for report in reports:
            for line in (report.reason, report.recipe if report.outcome is Outcome.BUILT else "", *report.notes):
                if line:
                    print(f"{report.target}: {line}")
        print(build_view.totals(reports))
    return 0 if all(report.outcome in _GOOD for report in reports) else 1


def _tune(options: argparse.Namespace) -> int:
    targets = _checked_targets(options, CPU_TARGETS)
    if not 0 < options.measure_seconds <= 60:
        raise BadInputError(f"--measure-seconds {options.measure_seconds:g} is not between 0 and 60")
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, _progress() as progress:
        spec = msgspec.structs.replace(_spec(options, Path(work)), measure_seconds=options.measure_seconds)
        limits = Limits(seconds=options.seconds, memory_mb=options.memory)
        task = progress.add_task(options.source.name, total=None)

        def say(step: str) -> None:
            progress.update(task, description=step)

        inspect_isolated(spec, limits, say)
        study = tune.search(spec, limits, targets, say)
    plot = options.plot or Path(f"{spec.model}-tune.svg")
    plot.write_text(tune_view.plot(study))
    if options.json:
        _print_json({"plot": str(plot), **msgspec.to_builtins(study)})
    else:
        _tables.print(tune_view.table(study))
        best = sum(point.on_front for point in study.points)
        print(f"* {best} of {len(study.points)} that no other one beats, within a budget of {study.budget:g}; {plot}")
    return 0 if any(point.on_front for point in study.points) else 1


def _checked_targets(options: argparse.Namespace, default: Sequence[str]) -> tuple[str, ...]:
    targets = tuple(dict.fromkeys(options.target or default))
    for target in targets:
        check_target(target)
    if not 0 <= options.budget <= 1:
        raise BadInputError(f"--budget {options.budget:g} is not between 0 and 1")
    return targets


def _inspect(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, _progress() as progress:
        task = progress.add_task(options.source.name, total=None)
        found = inspect_isolated(
            _spec(options, Path(work)),
            Limits(seconds=options.seconds, memory_mb=options.memory),
            lambda step: progress.update(task, description=step),
        )
    if options.json:
        _print_json(found)
    else:
        print("\n".join(build_view.inspection(options.source.name, found)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    folders = _build_folders(options.out)
    limits = Limits(seconds=options.seconds, memory_mb=options.memory)
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, _progress() as progress:
        task = progress.add_task("verify", total=len(folders))
        for folder in folders:
            progress.update(task, description=folder.name)
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
            progress.advance(task)
    if options.json:
        _print_json(verdicts)
    else:
        for verdict in verdicts:
            largest = ", ".join(f"{name} within {error:.3g}" for name, error in verdict.largest_error.items())
            print(f"{verdict.target}: {'; '.join(verdict.problems) or f'good ({largest})'}")
    return 1 if any(verdict.problems for verdict in verdicts) else 0


def _spec(options: argparse.Namespace, work: Path) -> BuildSpec:
    name = (
        getattr(options, "model", None) or re.sub(r"[^a-z0-9._-]+", "-", options.source.stem.lower()).strip("-._")[:64]
    )
    version = getattr(options, "model_version", "1")
    if not MODEL_NAME.fullmatch(name or ""):
        raise BadInputError(f"{name!r} is not a name for a model: small letters, digits, '.', '_', '-' (--model NAME)")
    if not VERSION_NAME.fullmatch(version):
        raise BadInputError(f"{version!r} is not a name for a version: letters, digits, '.', '_', '+', '-'")
    labels = getattr(options, "labels", None)
    return BuildSpec(
        model=name,
        version=version,
        target="",
        source=str(options.source.resolve()),
        out=str(work / "out"),
        work=str(work),
        calibration=_given(options.calibration),
        evaluation=_given(options.evaluation),
        labels=_given(labels),
        budget=getattr(options, "budget", 0.01),
        metric=options.metric,
        recipe=getattr(options, "recipe", ""),
        metadata=dict(_pair(text, "--metadata") for text in getattr(options, "metadata", [])),
        shapes={name: _shape(name, text) for name, text in (_pair(text, "--shape") for text in options.shape)},
    )


def _given(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise BadInputError(f"{path}: no such file")
    return str(path.resolve())


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInputError(f"{option} {text!r} is not KEY=VALUE")
    return key, value


def _shape(name: str, text: str) -> tuple[int, ...]:
    sizes = re.split(r"[x,]", text)
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", size) for size in sizes):
        raise BadInputError(f"--shape {name}={text!r}: sizes look like 1x3x224x224")
    return tuple(int(size) for size in sizes)


def _build_folders(out: Path) -> list[Path]:
    folders = (
        [out] if (out / MANIFEST_FILE).exists() else sorted(path.parent for path in out.glob(f"*/{MANIFEST_FILE}"))
    )
    if not folders:
        raise BadInputError(f"{out}: no build there (no {MANIFEST_FILE})")
    return folders


def _as_json(out: Path, report: BuildReport) -> dict[str, object]:
    folder = out / report.target
    built = report.outcome is Outcome.BUILT
    return {"folder": str(folder), "digest": digest_of(folder) if built else None, **msgspec.to_builtins(report)}


# --- targets and toolchains ----------------------------------------------------------------------------------------------


def _targets(options: argparse.Namespace) -> int:
    found = catalogue.targets()
    if options.json:
        _print_json(found)
    else:
        for one in found:
            print(f"{one.target:22} {'can be built here' if one.buildable else one.missing}")
    return 0


def _toolchain_list(options: argparse.Namespace) -> int:
    found = [toolchain.find(name, _toolchain_places(options)) for name in toolchain.names()]
    if options.json:
        _print_json([toolchain.as_json(one) for one in found])
    else:
        for one in found:
            state = (
                "not installed"
                if one.folder is None
                else f"{'installed' if one.current else 'outdated'} in {one.folder}"
            )
            print(f"{one.name}: {state}")
    return 0


def _toolchain_install(options: argparse.Namespace) -> int:
    with _progress() as progress:
        task = progress.add_task(options.name, total=None)
        folder = _toolchain_places(options)[0]
        done = toolchain.install(options.name, folder, lambda step: progress.update(task, description=step))
    if options.json:
        _print_json(toolchain.as_json(done))
    else:
        print(f"{done.name}: installed in {done.folder}")
    return 0


def _toolchain_doctor(options: argparse.Namespace) -> int:
    places = _toolchain_places(options)
    found = [toolchain.find(name, places) for name in toolchain.names()]
    problems = {one.name: toolchain.doctor(one) for one in found}
    if options.json:
        _print_json(problems)
    else:
        for name, problem in problems.items():
            print(f"{name}: {problem or 'works'}")
    wanted = [one.name for one in found if one.folder is not None or one.name not in toolchain.OPTIONAL]
    return 1 if any(problems[name] for name in wanted) else 0


def _toolchain_places(options: argparse.Namespace) -> list[Path]:
    return [options.dir] if options.dir else toolchain.places(os.environ)


# --- worker --------------------------------------------------------------------------------------------------------------


def _worker(options: argparse.Namespace) -> int:
    token = os.environ.get("COVEY_TOKEN")
    if not token:
        raise BadInputError("no token: set $COVEY_TOKEN to a token of the worker role")
    targets = tuple(options.targets.split(",")) if options.targets else catalogue.buildable()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    ca = options.ca or (Path(os.environ["COVEY_CA"]) if os.environ.get("COVEY_CA") else None)
    with (
        tempfile.TemporaryDirectory(prefix="covey-worker-") as temporary,
        Client(options.server, token, ca=ca) as client,
    ):
        worker = Worker(
            jobs=Jobs(client, stop, say),
            name=options.name or f"{socket.gethostname()}-{os.getpid()}",
            targets=targets,
            work=(options.work or Path(temporary)).resolve(),
            limits=Limits(seconds=options.seconds, memory_mb=options.memory),
            stop=stop,
            say=say,
            metrics=tuple(options.metric),
        )
        say(f"worker {worker.name}: {', '.join(targets)}")
        worker.run(once=options.once)
    return 0


# --- output --------------------------------------------------------------------------------------------------------------


def _progress() -> Progress:
    """A bar on standard error; nothing where that is no terminal."""
    columns = SpinnerColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=_people, transient=True, disable=not _people.is_terminal)


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())
