"""Looking without building: the review of a source with its data, and a finished build against its golden vectors.

Both run in the build process, because both read files that came from elsewhere, and leave their answer as JSON in the
work folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from covey_contract.errors import ContractError
from covey_contract.manifest import TensorSpec
from covey_converters import parity
from covey_converters.backends import BACKENDS
from covey_converters.errors import ConvertError, UnsupportedError
from covey_converters.folder import built_from, problems, read_manifest
from covey_converters.prepare import prepare
from covey_converters.samples import load_samples
from covey_converters.sources.registry import format_of
from covey_converters.spec import BuildSpec

ANSWER_FILE = "inspection.json"


class Inspection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a source model is, or the one line that says why it is none."""

    error: str = ""
    unsupported: bool = False  # `error` is this machine's lack of a toolchain, and not the model's fault
    format: str = ""
    dynamic: dict[str, tuple[str, ...]] = {}  # by input: the names of the dimensions that the source leaves open
    custom_operators: tuple[str, ...] = ()  # DOMAIN::OPERATOR, of domains that are not ONNX's own
    opset: int = 0
    producer: str = ""
    size: int = 0
    nodes: int = 0
    nodes_after_cleaning: int = 0
    parameters: int = 0
    operators: dict[str, int] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()
    samples: dict[str, int] = {}  # by file: "calibration", "evaluation"


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finished build, looked at again."""

    target: str
    problems: tuple[str, ...] = ()
    largest_error: dict[str, float] = {}  # over the golden vectors, by output


def inspect(spec: BuildSpec, say: Callable[[str], None]) -> None:
    work = Path(spec.work)
    try:
        answer = _inspect(spec, say)
    except ConvertError as error:
        answer = Inspection(error=str(error), unsupported=isinstance(error, UnsupportedError))
    (work / ANSWER_FILE).write_bytes(msgspec.json.encode(answer))


def _inspect(spec: BuildSpec, say: Callable[[str], None]) -> Inspection:
    import onnx

    say("reading the source")
    source, notes = prepare(Path(spec.source), Path(spec.work), spec.shapes)
    found = source.review
    came = onnx.load(str(source.original), load_external_data=False)
    data = {"calibration": spec.calibration, "evaluation": spec.evaluation}
    samples = {name: len(load_samples(Path(path), found.inputs)) for name, path in data.items() if path}
    return Inspection(
        format=format_of(Path(spec.source)).value,
        dynamic=_dynamic(came),
        custom_operators=tuple(
            sorted({f"{node.domain}::{node.op_type}" for node in came.graph.node if node.domain not in {"", "ai.onnx"}})
        ),
        opset=found.opset,
        producer=found.producer,
        size=found.size,
        nodes=found.nodes,
        nodes_after_cleaning=len(onnx.load(str(source.graph), load_external_data=False).graph.node),
        parameters=found.parameters,
        operators=found.operators,
        inputs=found.inputs,
        outputs=found.outputs,
        notes=notes,
        samples=samples,
    )


def _dynamic(model: Any) -> dict[str, tuple[str, ...]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {
        value.name: tuple(
            dim.dim_param or str(axis)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            if dim.dim_param or dim.dim_value <= 0
        )
        for value in model.graph.input
        if value.name not in weights
    }
    return {name: names for name, names in found.items() if names}


def verify(spec: BuildSpec, say: Callable[[str], None]) -> None:
    """`spec.source` is the build's folder."""
    say("comparing digests")
    folder = Path(spec.source)
    try:
        found = problems(folder)
        errors: dict[str, float] = {}
        if not found:
            say("running the golden vectors")
            found, errors = _golden(folder)
    except (ConvertError, ContractError) as error:
        found, errors = [str(error)], {}
    except Exception as error:  # noqa: BLE001  # a runtime raises its own kinds for a build that it cannot load
        found, errors = [f"the build does not run: {type(error).__name__}: {str(error)[:200]}"], {}
    verdict = Verdict(target=spec.target, problems=tuple(found), largest_error=errors)
    (Path(spec.work) / ANSWER_FILE).write_bytes(msgspec.json.encode(verdict))


def _golden(folder: Path) -> tuple[list[str], dict[str, float]]:
    manifest = read_manifest(folder)
    if manifest.golden is None:
        return ["the build has no golden vectors"], {}
    with np.load(folder / manifest.golden, allow_pickle=False) as arrays:
        inputs = {spec.name: arrays[f"in/{spec.name}"] for spec in manifest.inputs}
        wanted = {spec.name: arrays[f"out/{spec.name}"] for spec in manifest.outputs}
    session = BACKENDS[manifest.runtime].open(built_from(folder, manifest), threads=1)
    count = len(next(iter(inputs.values())))
    got = parity.stack([session.run({name: array[index] for name, array in inputs.items()}) for index in range(count)])
    found: list[str] = []
    errors: dict[str, float] = {}
    for name, want in wanted.items():
        limit = manifest.tolerance[name]
        difference = np.abs(got[name].astype(np.float64) - want.astype(np.float64))
        errors[name] = float(difference.max(initial=0.0))
        if not (difference <= limit.absolute + limit.relative * np.abs(want.astype(np.float64))).all():
            found.append(
                f"output {name!r} lies {errors[name]:.4g} from its golden vector; {limit.absolute:.4g} is allowed"
            )
    return found, errors
