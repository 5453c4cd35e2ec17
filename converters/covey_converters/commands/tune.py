"""`covey-convert tune`: every recipe of every target, and which of them no other one beats."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from covey_converters import tune, tune_view
from covey_converters.backends import CPU_TARGETS
from covey_converters.commands.given import limits_of, spec_of, targets_of
from covey_converters.commands.output import print_json, progress, tables
from covey_converters.isolation import inspect_isolated


def run(options: argparse.Namespace) -> int:
    targets = targets_of(options, CPU_TARGETS)
    with tempfile.TemporaryDirectory(prefix="covey-convert-") as work, progress() as shown:
        spec = spec_of(options, Path(work))
        limits = limits_of(options)
        task = shown.add_task(options.source.name, total=None)

        def say(step: str) -> None:
            shown.update(task, description=step)

        inspect_isolated(spec, limits, say)
        study = tune.search(spec, limits, targets, say)
    plot = options.plot or Path(f"{spec.model}-tune.svg")
    plot.write_text(tune_view.plot(study))
    if options.json:
        print_json({"plot": str(plot), **msgspec.to_builtins(study)})
    else:
        tables.print(tune_view.table(study))
        best = sum(point.on_front for point in study.points)
        say(f"* {best} of {len(study.points)} that no other one beats, within a budget of {study.budget:g}; {plot}")
    return 0 if any(point.on_front for point in study.points) else 1
