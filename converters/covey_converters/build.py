"""One target of one model version, from source to a folder that may ship. Runs in the build process.

    prepare -> for each recipe: make, compare with the source, judge -> golden vectors -> measure -> manifest

Invariant: a manifest is written only for a build that passed its gates; everything else leaves a report alone, also what could
only be checked because it cannot be run here.

Built again from the same inputs on the same machine, a build has the same files, byte for byte (a test checks it). Its manifest differs,
and with it the build's name, because it holds the memory that was measured.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from covey_contract import drift
from covey_contract.building import Accuracy, BuildReport, Outcome, OutputParity, Try
from covey_contract.errors import DecodeError
from covey_contract.manifest import Runtime, TensorSpec, Tolerance
from covey_converters import batching, evidence, metrics, parity
from covey_converters.backend import Array, Backend, Built, Source
from covey_converters.backends import backend_for
from covey_converters.deadline import OutOfTime, within
from covey_converters.errors import (
    BadInputError,
    ConvertError,
    MetricError,
    RecipeError,
    UnsupportedError,
    UnverifiableError,
)
from covey_converters.folder import LABELS_FILE, write_manifest
from covey_converters.golden import GOLDEN_FILE, GOLDEN_SAMPLES, tolerance, write_golden
from covey_converters.measure import Measured, measure
from covey_converters.prepare import prepare
from covey_converters.provenance import write_provenance
from covey_converters.reference import reference_of as drift_reference
from covey_converters.samples import Samples, load_samples
from covey_converters.spec import BuildSpec
from covey_converters.truth import RANDOM_SAMPLES, Reference, answers_of, one_line, reference_of

_MAX_LABELS_BYTES = 1 << 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A build that a recipe made, with what was found out about it."""

    built: Built
    recipe: str
    parity: dict[str, OutputParity]
    accuracy: Accuracy | None
    objections: list[str]
    size: int
    answers: drift.Reference | None = None  # what they look like on the evaluation samples


def build(spec: BuildSpec, say: Say, backend: Backend | None = None) -> BuildReport:
    """Build `spec.target` into `spec.out`. Every expected failure is a report; only a bug raises."""
    began = time.monotonic()
    report = BuildReport(target=spec.target, outcome=Outcome.UNSUPPORTED, source_size=_size(Path(spec.source)))
    try:
        chosen, precision = backend_for(spec.target)
        report = _build(spec, backend or chosen, precision, report, say)
    except (MetricError, RecipeError) as error:
        report = _with(report, outcome=Outcome.FAILED, reason=str(error))
    except (ConvertError, DecodeError) as error:
        report = _with(report, reason=str(error))
    return _with(report, seconds=round(time.monotonic() - began, 2))


def _build(spec: BuildSpec, backend: Backend, precision: str, report: BuildReport, say: Say) -> BuildReport:
    say("reading the source")
    source, notes = prepare(Path(spec.source), Path(spec.work), spec.shapes)
    calibration = load_samples(Path(spec.calibration), source.review.inputs) if spec.calibration else None
    recipes = _recipes(spec, backend, precision, calibrated=calibration is not None)
    say("running the source")
    reference = reference_of(source, Path(spec.evaluation) if spec.evaluation else None, spec.metric)
    notes += _notes(spec, precision, reference)
    source, more = batching.opened(source, spec.max_batch, reference.samples)
    notes += more
    report = _with(report, notes=notes, toolchain=versions(backend.packages))

    began = time.monotonic()
    tries: list[Try] = []
    accepted: Candidate | None = None
    best: Candidate | None = None
    for number, recipe in enumerate(recipes):
        if time.monotonic() - began > spec.chain_seconds:
            tries.append(
                Try(recipe=recipe, outcome=Outcome.FAILED, detail=f"not begun: {spec.chain_seconds:g} s were over")
            )
            break
        say(f"building: {recipe}")
        folder = Path(spec.work) / f"{spec.target}-{number}"
        try:
            candidate, tried = attempt(backend, source, spec, recipe, calibration, reference, folder)
            if (why := _mixed(backend, precision, candidate, reference)) is not None:
                # Another recipe may bear it; but that would be a slower or a worse one for all who ask alone.
                report = _with(report, notes=(*report.notes, batching.without(why)))
                source = source.alone()
                candidate, tried = attempt(backend, source, spec, recipe, calibration, reference, folder)
        except UnverifiableError as finding:
            return _with(report, outcome=Outcome.CHECKED, recipe=recipe, reason=str(finding), tries=tuple(tries))
        tries.append(tried)
        if candidate is not None and (best is None or len(candidate.objections) < len(best.objections)):
            best = candidate
        if candidate is not None and not candidate.objections:
            accepted = candidate
            break
    report = _with(report, tries=tuple(tries))
    if accepted is None:
        return _not_accepted(report, best)

    say("golden vectors")
    out = Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in accepted.built.files:
        shutil.move(accepted.built.folder / name, out / name)
    built = Built(**{**vars(accepted.built), "folder": out})
    if built.max_batch > 1:
        pace = batching.pace(backend.open(built, threads=1), reference.samples, built.max_batch)
        report = _with(report, notes=(*report.notes, pace))
    tolerances = _golden(backend, precision, built, source, reference.samples.spread(GOLDEN_SAMPLES))
    if spec.labels:
        _copy_labels(Path(spec.labels), out / LABELS_FILE)
    say("measuring")
    work = Path(spec.work)
    both = (Measured(backend.runtime, built), Measured(Runtime.ONNXRUNTIME, _as_built(source)))
    latency, source_latency = measure(both, out / GOLDEN_FILE, spec.measure_seconds, work)
    state = partial(write_provenance, out, spec, accepted.recipe, report.toolchain)
    write_manifest(out, spec, built, tolerances, latency.peak_rss_mb, state, accepted.answers)
    return _with(
        report,
        outcome=Outcome.BUILT,
        recipe=accepted.recipe,
        size=sum(_size(out / name) for name in built.files),
        parity=accepted.parity,
        accuracy=accepted.accuracy,
        latency=latency,
        source_latency=source_latency,
        notes=(*report.notes, *built.notes),
    )


def _mixed(backend: Backend, precision: str, candidate: Candidate | None, reference: Reference) -> str | None:
    """Why a build that may otherwise ship must not compute several rows at once; None where it may, or need not."""
    if candidate is None or candidate.objections or candidate.built.max_batch <= 1:
        return None
    session = backend.open(candidate.built, threads=1)
    try:
        return batching.mixed(session, precision, reference.samples, candidate.built.max_batch) or None
    except Exception as error:  # noqa: BLE001  # a runtime raises its own kinds for shapes that it cannot run
        return f"the build does not run on several rows: {one_line(error)}"


def _recipes(spec: BuildSpec, backend: Backend, precision: str, *, calibrated: bool) -> tuple[str, ...]:
    found = backend.recipes(precision, calibrated=calibrated)
    if spec.recipe and spec.recipe not in found:
        raise BadInputError(f"{spec.recipe!r} is no recipe of {spec.target}; there are {', '.join(map(repr, found))}")
    return (spec.recipe,) if spec.recipe else found


def attempt(
    backend: Backend,
    source: Source,
    spec: BuildSpec,
    recipe: str,
    calibration: Samples | None,
    reference: Reference,
    folder: Path,
) -> tuple[Candidate | None, Try]:
    """One recipe: made, run on the evaluation samples, and judged.

    `UnsupportedError` and `UnverifiableError` end the build, `RecipeError` this try.
    """
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def make() -> tuple[Built, list[dict[str, Array]]]:
        built = backend.build(source, spec.target, recipe, calibration, folder)
        if source.max_batch > 1:
            built = batching.batched(built, source.max_batch)
        session = backend.open(built, threads=1)
        return built, [session.run(sample) for sample in reference.samples]

    try:
        built, answers = within(spec.recipe_seconds, make)
        outputs = parity.stack(answers)
    except OutOfTime:
        return None, _tried(recipe, Outcome.FAILED, f"did not end within {spec.recipe_seconds:g} s", began)
    except ConvertError as error:
        if isinstance(error, UnsupportedError | UnverifiableError):
            raise
        return None, _tried(recipe, Outcome.FAILED, str(error), began)
    except Exception as error:  # noqa: BLE001  # a runtime raises its own kinds for a build that it cannot load or run
        return None, _tried(recipe, Outcome.FAILED, f"the build does not run: {one_line(error)}", began)
    compared = parity.compare(reference.outputs, outputs)
    try:
        judged = metrics.judge(reference.metric, reference.outputs, outputs, reference.samples, spec.budget)
    except RecipeError as error:
        return None, _tried(recipe, Outcome.FAILED, str(error), began)
    _, precision = backend_for(spec.target)
    accuracy = None if judged is None else judged.accuracy
    objections = parity.objections(
        precision, compared, accuracy, *(() if judged is None else (judged.outputs, judged.changed))
    )
    objections += [] if judged is None else judged.objections
    outcome = Outcome.REFUSED if objections else Outcome.BUILT
    candidate = Candidate(
        built,
        recipe,
        compared,
        accuracy,
        objections,
        sum(_size(folder / name) for name in built.files),
        drift_reference(reference.samples, answers),
    )
    tried = _tried(recipe, outcome, "; ".join(objections), began)
    return candidate, msgspec.structs.replace(tried, figures=_figures(candidate))


def _figures(candidate: Candidate) -> dict[str, float]:
    """What a try is remembered by."""
    outputs = candidate.parity.values()
    found = {"bytes": float(candidate.size), "cosine": min((one.cosine for one in outputs), default=1.0)}
    agreements = [one.top1_agreement for one in outputs if one.top1_agreement is not None]
    columns = [one.column_error for one in outputs if one.column_error is not None]
    found |= {"agreement": min(agreements)} if agreements else {}
    found |= {"column_error": max(columns)} if columns else {}
    found |= {"drop": candidate.accuracy.drop} if candidate.accuracy else {}
    return {name: round(value, 6) for name, value in found.items()}


def _golden(backend: Backend, precision: str, built: Built, source: Source, samples: Samples) -> dict[str, Tolerance]:
    """Write the golden vectors; the tolerance of each output, by name."""
    ours = _run(backend.open(built, threads=1).run, samples)
    other = _run(backend.open(built, threads=2, reference=True).run, samples)
    truth = parity.stack(answers_of(source, samples))
    write_golden(built.folder / GOLDEN_FILE, samples.arrays, ours)
    names = {spec.name: spec.build_name or spec.name for spec in built.outputs}
    return {
        name: tolerance(precision, ours[name], other[name], truth[name], built.steps.get(names[name])) for name in ours
    }


def _run(run: Callable[[dict[str, Array]], dict[str, Array]], samples: Samples) -> dict[str, Array]:
    return parity.stack([run(sample) for sample in samples])


def _as_built(source: Source) -> Built:
    specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = source.review.inputs, source.review.outputs
    folder, entry = source.original.parent, source.original.name
    return Built(folder=folder, files=(entry,), entry=entry, inputs=specs[0], outputs=specs[1])


def _not_accepted(report: BuildReport, best: Candidate | None) -> BuildReport:
    if best is not None:
        return _with(
            report,
            outcome=Outcome.REFUSED,
            recipe=best.recipe,
            reason="; ".join(best.objections),
            parity=best.parity,
            accuracy=best.accuracy,
        )
    return _with(report, outcome=Outcome.FAILED, reason=f"no recipe worked; the last one: {report.tries[-1].detail}")


def _notes(spec: BuildSpec, precision: str, reference: Reference) -> tuple[str, ...]:
    limits = parity.THRESHOLDS[precision]
    agreement = f"top-1 agreement >= {limits.agreement:.1%} with the source"
    compared = (
        f"judged by cosine >= {limits.cosine}, {agreement} and every column within {limits.column:.0%} of its range"
    )
    # On its own answers: a metric that does not fit the model says so before anything is built.
    judged = metrics.judge(reference.metric, reference.outputs, reference.outputs, reference.samples, spec.budget)
    notes: list[str] = []
    if reference.samples.synthetic:
        notes.append(
            f"no evaluation data: compared on {RANDOM_SAMPLES} random inputs, {compared}; accuracy is not known"
        )
    elif judged is None:
        notes.append(
            f"no metric of the task, and no labels for an output with class scores: {compared}; accuracy is not known"
        )
    elif judged.changed is not None and (few := evidence.too_few(judged.changed, spec.budget)):
        notes.append(few)
    if judged is not None and (rest := sorted(reference.outputs.keys() - judged.outputs)):
        notes.append(f"{judged.accuracy.metric} says nothing of {', '.join(rest)}: {compared}")
    if precision == "int8" and spec.calibration is None:
        notes.append("no calibration data: weights are INT8, activations are quantised at run time or stay float")
    return tuple(notes)


def _copy_labels(path: Path, out: Path) -> None:
    """One name per line; raises `BadInputError` if it is no text."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_LABELS_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path.name}: not a readable text file of labels: {error}") from error
    if len(text) > _MAX_LABELS_BYTES:
        raise BadInputError(f"{path.name}: labels of more than {_MAX_LABELS_BYTES} bytes")
    out.write_text(text)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _tried(recipe: str, outcome: Outcome, detail: str, began: float) -> Try:
    return Try(recipe=recipe, outcome=outcome, detail=detail[:1000], seconds=round(time.monotonic() - began, 2))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _with(report: BuildReport, **changes: object) -> BuildReport:
    return msgspec.structs.replace(report, **changes)
