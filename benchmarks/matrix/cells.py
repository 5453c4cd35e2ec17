"""One cell of the matrix: one model built for one target by the converters, then judged by the agent's own runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.matrix.subject import Array, Arrays, Ask, Drawn, Purpose, Score, Subject
from covey_agent.runner.errors import LoadError
from covey_agent.runner.protocol import Start
from covey_agent.runner.service import load_build
from covey_contract.building import BuildReport, Outcome
from covey_contract.manifest import check_target
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.isolation import build_isolated
from covey_converters.spec import BuildSpec, Limits

# A recipe, all recipes of a cell, and the whole cell.
_RECIPE_SECONDS, _CHAIN_SECONDS, _CELL_SECONDS = 120.0, 420.0, 800.0
Say = Callable[[str], None]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one model and one target. Times in ms with one thread, sizes in bytes."""

    model: str
    target: str
    outcome: str
    recipe: str = ""
    reason: str = ""
    tries: int = 0
    size: int = 0
    source_size: int = 0
    p50_ms: float | None = None
    source_p50_ms: float | None = None  # the source in ONNX Runtime FP32, in turns with the build
    cpu_ms: float | None = None  # processor time of an inference, the mean
    source_cpu_ms: float | None = None
    cosine: float | None = None  # the gate's lowest over all outputs
    metric: str = ""
    source_score: float | None = None  # of the independent check
    build_score: float | None = None
    wrong: str = ""  # why the independent check finds a build wrong that passed our gate
    seconds: float = 0.0

    @property
    def built(self) -> bool:
        return self.outcome == Outcome.BUILT

    @property
    def speedup(self) -> float | None:
        """By processor time, which on one thread is the time on the clock of a machine that nobody else uses."""
        return self.source_cpu_ms / self.cpu_ms if self.cpu_ms and self.source_cpu_ms else None

    @property
    def speedup_on_the_clock(self) -> float | None:
        return self.source_p50_ms / self.p50_ms if self.p50_ms and self.source_p50_ms else None


class Row:
    """All cells of one model. The samples are drawn once; what no build sees is kept for the judge."""

    def __init__(self, subject: Subject, packages: Path, folder: Path, *, quick: bool) -> None:
        self._subject = subject
        self._packages = packages
        self._folder = folder
        self._share = 4 if quick else 1

    def cells(self, targets: Sequence[str], say: Say) -> list[Cell]:
        subject, folder = self._subject, self._folder
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "work").mkdir(parents=True)
        source = self._packages / subject.source
        if subject.make is not None:
            source = folder / f"{subject.name}.onnx"
            subject.make(self._packages, source)
        self._write(Purpose.CALIBRATION, subject.calibration)
        self._write(Purpose.EVALUATION, subject.evaluation)
        held_out = self._draw(Purpose.HELD_OUT, subject.held_out)
        found = []
        for target in targets:
            report = self._build(source, target)
            cell = self._judged(source, target, report, held_out)
            say(f"{subject.name} {target}: {cell.outcome} {cell.wrong or cell.reason}".rstrip())
            found.append(cell)
        return found

    def _draw(self, purpose: Purpose, count: int) -> Drawn:
        return self._subject.draw(self._packages, max(count // self._share, 8), purpose)

    def _write(self, purpose: Purpose, count: int) -> None:
        drawn = self._draw(purpose, count)
        arrays = dict(drawn.arrays)
        if drawn.labels is not None and purpose is Purpose.EVALUATION:
            arrays["labels"] = drawn.labels
        np.savez(self._folder / f"{purpose.name.lower()}.npz", **arrays)  # type: ignore[arg-type]  # its stub knows no names of arrays

    def _build(self, source: Path, target: str) -> BuildReport:
        spec = BuildSpec(
            model=self._subject.name,
            version="1",
            target=target,
            source=str(source),
            out=str(self._folder / target),
            work=str(self._folder / "work"),
            calibration=str(self._folder / "calibration.npz"),
            evaluation=str(self._folder / "evaluation.npz"),
            shapes=self._subject.shapes,
            metric=self._subject.metric,
            budget=self._subject.budget,
            measure_seconds=1.0,
            recipe_seconds=_RECIPE_SECONDS,
            chain_seconds=_CHAIN_SECONDS,
        )
        return build_isolated(spec, Limits(seconds=_CELL_SECONDS))

    def _judged(self, source: Path, target: str, report: BuildReport, held_out: Drawn) -> Cell:
        cosines = [one.cosine for one in report.parity.values()]
        cell = Cell(
            model=self._subject.name,
            target=target,
            outcome=report.outcome.value,
            recipe=report.recipe,
            reason=report.reason,
            tries=len(report.tries),
            size=report.size,
            source_size=report.source_size,
            p50_ms=report.latency.p50_ms if report.latency else None,
            source_p50_ms=report.source_latency.p50_ms if report.source_latency else None,
            cpu_ms=report.latency.cpu_ms if report.latency else None,
            source_cpu_ms=report.source_latency.cpu_ms if report.source_latency else None,
            cosine=min(cosines) if cosines else None,
            seconds=report.seconds,
        )
        if report.outcome is not Outcome.BUILT:
            return cell
        try:
            build, _ = load_build(self._folder / target, Start(background=False, check_golden=True, threads=1))
        except LoadError as error:
            return msgspec.structs.replace(cell, wrong=f"the agent cannot load it: {error}")

        def ask(inputs: Mapping[str, Array]) -> Arrays:
            # A runner's answer is its own memory, and holds until the next question.
            return {name: answer.copy() for name, answer in build.infer(dict(inputs)).items()}

        score = self._subject.judge(self._packages, held_out, _source(source), ask)
        return msgspec.structs.replace(
            cell,
            metric=score.metric,
            source_score=score.source,
            build_score=score.build,
            wrong=verdict(score, self._subject.allowed[check_target(target)[1]]),
        )


def _source(path: Path) -> Ask:
    session = OnnxRuntimeSession(path, threads=1)

    def ask(inputs: object) -> Arrays:
        return session.run(inputs)  # type: ignore[arg-type]  # what a subject draws is what a session takes

    return ask


def verdict(score: Score, allowed: float) -> str:
    """Why a build's score is no answer to be released; empty if it is. One sample more or less is no finding."""
    if score.drop <= allowed + 1e-9 or score.drop * score.samples <= 1 + 1e-9:
        return ""
    return f"{score.metric}: {score.source:.3f} -> {score.build:.3f} on {score.samples}, more than {allowed:g} lost"
