"""What the command line gave, checked: the model's name, files, shapes, targets. Every mistake is a `BadInputError` of one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from covey_contract.manifest import MAX_BATCH, MODEL_NAME, VERSION_NAME, check_target
from covey_converters.errors import BadInputError
from covey_converters.spec import BuildSpec, Limits

DEFAULT_TARGETS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp16", "openvino-int8", "tflite-int8")


def targets_of(options: argparse.Namespace, default: Sequence[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(options.target or default))
    for target in found:
        check_target(target)
    if not 0 <= options.budget <= 1:
        raise BadInputError(f"--budget {options.budget:g} is not between 0 and 1")
    if not 0 < options.measure_seconds <= 60:
        raise BadInputError(f"--measure-seconds {options.measure_seconds:g} is not between 0 and 60")
    if not 1 <= options.recipe_seconds <= 86_400:
        raise BadInputError(f"--recipe-seconds {options.recipe_seconds:g} is not between 1 and 86400")
    if not 1 <= options.max_batch <= MAX_BATCH:
        raise BadInputError(f"--max-batch {options.max_batch} is not between 1 and {MAX_BATCH}")
    return found


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(seconds=options.seconds, memory_mb=options.memory)


def spec_of(options: argparse.Namespace, work: Path) -> BuildSpec:
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
        max_batch=options.max_batch,
        measure_seconds=options.measure_seconds,
        recipe_seconds=options.recipe_seconds,
        chain_seconds=4 * options.recipe_seconds,
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
