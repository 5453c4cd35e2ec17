"""Recipes have a time limit, and the next one gets its chance."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from covey_contract.building import Outcome
from covey_converters import deadline
from covey_converters.backend import Built, Source
from covey_converters.backends.onnxruntime import OnnxRuntimeBackend
from covey_converters.build import build
from covey_converters.deadline import OutOfTime, within
from covey_converters.samples import Samples
from covey_converters.spec import BuildSpec
from tests.unit.converters.conftest import MakeModel

FIRST = "onnxslim"


class Endless(OnnxRuntimeBackend):
    """Its first recipe never ends, and catches what it can."""

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        while recipe == FIRST:
            with contextlib.suppress(Exception):  # as toolchains do
                time.monotonic()
        return super().build(source, target, recipe, calibration, folder)


def spec(source: Path, folder: Path, recipe_seconds: float, chain_seconds: float = 60.0) -> BuildSpec:
    (folder / "work").mkdir()
    return BuildSpec(
        model="m",
        version="1",
        target="onnxruntime-fp32",
        source=str(source),
        out=str(folder / "out"),
        work=str(folder / "work"),
        measure_seconds=0.05,
        recipe_seconds=recipe_seconds,
        chain_seconds=chain_seconds,
    )


def test_a_recipe_that_does_not_end_is_left_for_the_next(make_model: MakeModel, tmp_path: Path) -> None:
    report = build(spec(make_model(), tmp_path, recipe_seconds=0.2), lambda _: None, Endless())
    assert report.outcome is Outcome.BUILT, report
    assert [tried.outcome for tried in report.tries] == [Outcome.FAILED, Outcome.BUILT]
    assert report.tries[0].detail == "did not end within 0.2 s"


def test_no_recipe_is_begun_when_the_time_of_all_is_over(make_model: MakeModel, tmp_path: Path) -> None:
    report = build(spec(make_model(), tmp_path, recipe_seconds=0.2, chain_seconds=0.1), lambda _: None, Endless())
    assert report.outcome is Outcome.FAILED
    assert report.tries[-1].detail == "not begun: 0.1 s were over"


def endless() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.monotonic()


def test_what_does_not_end_is_stopped() -> None:
    with pytest.raises(OutOfTime):
        within(0.01, endless)
    assert all(thread.name != "recipe" for thread in threading.enumerate())


def test_what_ends_gives_what_it_gives() -> None:
    assert within(60.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60.0, lambda: 1 // 0)


def test_nothing_is_raised_in_the_callers_thread() -> None:
    def about_as_long_as_it_may() -> int:
        until = time.monotonic() + 0.002
        while time.monotonic() < until:
            pass
        return 7

    others = set(threading.enumerate())
    for _ in range(300):
        with contextlib.suppress(OutOfTime):
            assert within(0.002, about_as_long_as_it_may) == 7
    assert set(threading.enumerate()) <= others  # nobody is left who could raise it later


class Dropping:
    """Python drops what is raised while an object is cleared away."""

    def __del__(self) -> None:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_that_came_at_a_bad_moment_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_AGAIN_S", 0.02)

    def cleared_away() -> None:
        Dropping()
        endless()

    with pytest.raises(OutOfTime):
        within(0.01, cleared_away)
