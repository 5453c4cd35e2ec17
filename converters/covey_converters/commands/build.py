"""`covey-convert build`: every asked target, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from covey_contract.building import BuildReport, Outcome
from covey_converters import build_view
from covey_converters.commands.given import DEFAULT_TARGETS, limits_of, spec_of, targets_of
from covey_converters.commands.output import print_json, progress, say, tables
from covey_converters.errors import BadInputError
from covey_converters.folder import digest_of
from covey_converters.isolation import build_isolated, inspect_isolated

_GOOD = frozenset({Outcome.BUILT, Outcome.CHECKED})


def run(options: argparse.Namespace) -> int:
    targets = targets_of(options, DEFAULT_TARGETS)
    if options.recipe and len(targets) != 1:
        raise BadInputError("--recipe is one target's: name that target with --target")
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work:
        spec = spec_of(options, Path(work))
        limits = limits_of(options)
        with progress() as shown:
            task = shown.add_task(options.source.name, total=len(targets))
            found = inspect_isolated(spec, limits, lambda step: shown.update(task, description=step))
            reports: list[BuildReport] = []
            for target in targets:
                one = msgspec.structs.replace(spec, target=target, out=str((options.out / target).resolve()))

                def doing(step: str, target: str = target) -> None:
                    shown.update(task, description=f"{target}: {step}")

                reports.append(build_isolated(one, limits, doing))
                shown.advance(task)
    if options.json:
        print_json({"source": found, "builds": [_as_json(options.out, report) for report in reports]})
    else:
        tables.print(build_view.table(reports))
        for report in reports:
            for line in (report.reason, report.recipe if report.outcome is Outcome.BUILT else "", *report.notes):
                if line:
                    say(f"{report.target}: {line}")
        say(build_view.totals(reports))
    return 0 if all(report.outcome in _GOOD for report in reports) else 1


def _as_json(out: Path, report: BuildReport) -> dict[str, object]:
    folder = out / report.target
    built = report.outcome is Outcome.BUILT
    return {"folder": str(folder), "digest": digest_of(folder) if built else None, **msgspec.to_builtins(report)}
