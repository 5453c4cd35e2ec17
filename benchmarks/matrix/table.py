"""The matrix as one JSON object and as a page of the docs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.matrix.cells import Cell
from benchmarks.matrix.cost import Round, ratio
from benchmarks.matrix.pruning import Kept, section
from benchmarks.matrix.subject import Subject
from benchmarks.matrix.vendor import TOOLS
from covey_converters.measure import machine

_PACKAGES = (
    "onnxruntime", "onnx", "onnxslim", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "tensorrt-rtx", "numpy",
)  # fmt: skip
_RUNTIMES = ("onnxruntime", "openvino", "tflite")


@dataclass(frozen=True)
class Run:
    """The run itself. `load`: the machine's highest load average seen; `absent`: models left out, and why."""

    minutes: float = 0.0
    load: float = 0.0
    absent: dict[str, str] = field(default_factory=dict)
    rounds: Sequence[Round] = ()
    pruned: Sequence[Kept] = ()


def record(subjects: Sequence[Subject], cells: Sequence[Cell], *, date: str, quick: bool, run: Run) -> dict[str, Any]:
    """The whole run. Cells of the check for TensorRT are counted apart: nothing is built there."""
    cpu = [cell for cell in cells if not is_check(cell)]
    present = {cell.model for cell in cells}
    classifier = next((one.name for one in subjects if one.task == "vision classifier" and one.name in present), "")
    detector = next((subject.name for subject in subjects if subject.task == "detector"), "")
    return {
        "date": date,
        "machine": machine(),
        "python": platform.python_version(),
        "versions": versions(),
        "quick": quick,
        "minutes": round(run.minutes, 1),
        "load": round(run.load, 1),
        "absent": run.absent,
        "models": len({cell.model for cell in cells}),
        "cells": len(cpu),
        "built": sum(cell.built for cell in cpu),
        "refused": sum(not cell.built for cell in cpu),
        "checked": sum(cell.outcome == "checked" for cell in cells),
        "wrong": sum(bool(cell.wrong) for cell in cells),
        "int8_speedup": by_runtime(cpu, classifier, lambda cell: cell.speedup),
        "int8_speedup_on_the_clock": by_runtime(cpu, classifier, lambda cell: cell.speedup_on_the_clock),
        "int8_accuracy_drop": by_runtime(cpu, classifier, _drop),
        "detector_recall": {cell.target: cell.build_score for cell in cpu if cell.model == detector and cell.built},
        "int8_by_model": {
            name: {
                "speedup": by_runtime(cpu, name, lambda cell: cell.speedup),
                "accuracy_drop": by_runtime(cpu, name, _drop),
            }
            for name in (one.name for one in subjects if one.task == "vision classifier" and one.name in present)
        },
        "cost_ratio": ratio(list(run.rounds)) if run.rounds else None,
        "cost_rounds": [msgspec.to_builtins(one) for one in run.rounds],
        "pruned": [msgspec.to_builtins(one) for one in run.pruned],
        "table": [msgspec.to_builtins(cell) for cell in cells],
    }


def is_check(cell: Cell) -> bool:
    return cell.target.startswith("tensorrt")


def by_runtime(cells: Sequence[Cell], model: str, figure: Any) -> dict[str, float | None]:
    found = {cell.target: figure(cell) for cell in cells if cell.model == model and cell.built}
    return {runtime: _rounded(found.get(f"{runtime}-int8")) for runtime in _RUNTIMES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _drop(cell: Cell) -> float | None:
    return None if cell.source_score is None or cell.build_score is None else cell.source_score - cell.build_score


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def page(subjects: Sequence[Subject], cells: Sequence[Cell], result: dict[str, Any]) -> str:
    """The page of the docs, in Markdown."""
    lines = [
        "# Real models on every target",
        "",
        "Made by `./dev matrix`; do not edit. The models come out of packages that anybody can install, pinned by hash in",
        "`benchmarks/matrix/packages.txt`; none is committed. Each is converted by `covey-convert` with drawn samples, and each build",
        "is loaded by the agent's own runner and judged by the task's own metric on samples that no build has seen.",
        "",
        f"{result['date']} · {result['machine']} · Python {result['python']} · "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "",
        f"**{result['built']} of {result['cells']} cells built**, {result['wrong']} of them wrong by the independent check; "
        f"{result['checked']} of {len({cell.model for cell in cells})} graphs fit for TensorRT.",
        "",
    ]
    lines += _summary(result)
    present = {cell.model for cell in cells}
    if missing := [subject.name for subject in subjects if subject.name not in present]:
        why = [f"{name} ({result['absent'].get(name, 'not asked for')})" for name in missing]
        lines += [f"Not in this run: {', '.join(why)}.", ""]
    for subject in subjects:
        mine = [cell for cell in cells if cell.model == subject.name]
        if mine:
            lines += _section(subject, mine)
    if result["pruned"]:
        lines += section(msgspec.convert(result["pruned"], list[Kept]))
    lines += _cost(result)
    lines += [
        "p50: one thread, this machine; *faster* compares with the source in ONNX Runtime FP32, measured in turns with each build: p50 by the",
        "clock, and mean processor time of an inference, which neighbours on the machine do not stretch (summed up above). The metric's",
        "source is 1 where the source's own answers are the truth. A cell that is not built says why.",
        "",
    ]
    return "\n".join(lines)


def _summary(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["load"] > (os.cpu_count() or 1):
        lines += [
            f"**Busy machine**: its load average rose to {result['load']:g} while this ran ({result['minutes']:g} min). Ratios are of runs in",
            "turns, which a neighbour slows alike; single p50s say little.",
            "",
        ]
    if result["int8_by_model"]:
        lines += ["| INT8 of vision classifiers | | ONNX Runtime | OpenVINO | LiteRT |", "|---|---|---:|---:|---:|"]
        for name, figures in result["int8_by_model"].items():
            lines.append(
                f"| {name} | faster than its FP32 source (processor time) | {_row(figures['speedup'], '.2f', '×')} |"
            )
            lines.append(f"| {name} | accuracy lost at the labels | {_row(figures['accuracy_drop'], '+.4f', '')} |")
        lines.append("")
    if result["detector_recall"]:
        recall = ", ".join(f"`{target}` {value:.3f}" for target, value in result["detector_recall"].items())
        lines += [f"Detector, share of the source's boxes that are found again: {recall}.", ""]
    return lines


def _row(figures: dict[str, float | None], form: str, unit: str) -> str:
    return " | ".join("not built" if figures[name] is None else f"{figures[name]:{form}}{unit}" for name in _RUNTIMES)


def _cost(result: dict[str, Any]) -> list[str]:
    rounds = result["cost_rounds"]
    if not rounds:
        return []
    lines = [
        "## What a build costs",
        "",
        f"`covey-convert build` of digit-reader for {len(TOOLS)} targets, beside one script a target that calls the vendors' tools directly",
        "(`benchmarks/matrix/vendor.py`): the same conversion and quantisation, the same evaluation of source and result, the same",
        "timing of both. CPU seconds of all processes, in turns. Conversion alone is the vendors' side without evaluation and timing.",
        "",
        "| round | covey-convert | vendors' tools | conversion alone | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for number, one in enumerate(rounds, 1):
        figures = " | ".join(f"{one[key]:.1f} s" for key in ("covey", "vendor", "vendor_bare"))
        lines.append(f"| {number} | {figures} | {one['covey'] / one['vendor']:.2f} |")
    return [*lines, "", f"Median ratio: **{result['cost_ratio']}**.", ""]


def _section(subject: Subject, cells: Sequence[Cell]) -> list[str]:
    size = next((cell.source_size for cell in cells if cell.source_size), 0)
    metric = next((cell.metric for cell in cells if cell.metric), "metric")
    lines = [
        f"## {subject.name}: {subject.task}",
        "",
        f"`{subject.source.rpartition('/')[2]}` of `{subject.package}`, {size / 1e6:.2f} MB"
        + "".join(f"; `{name}` {'×'.join(map(str, shape))}" for name, shape in subject.shapes.items()),
        "",
        f"| target | outcome | MB | {metric}: source | build | p50 ms | source ms | faster: clock | processor | recipe, or why not |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    return [*lines, *map(_line, cells), ""]


def _line(cell: Cell) -> str:
    words = f"{cell.outcome}, **wrong**" if cell.wrong else cell.outcome
    why = cell.wrong or (cell.recipe if cell.built else cell.reason)
    columns = [
        f"`{cell.target}`",
        words,
        f"{cell.size / 1e6:.2f}" if cell.size else "",
        _figure(cell.source_score, 3),
        _figure(cell.build_score, 3),
        _figure(cell.p50_ms, 2),
        _figure(cell.source_p50_ms, 2),
        *("" if one is None else f"{one:.2f}×" for one in (cell.speedup_on_the_clock, cell.speedup)),
        " ".join(why.split())[:220].replace("|", "/"),
    ]
    return f"| {' | '.join(columns)} |"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
