"""The front of a study, its table and its plot: decided without building anything."""

from __future__ import annotations

import io
import itertools
import xml.etree.ElementTree as ElementTree

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from covey_contract.building import Accuracy, BuildReport, Latency, Outcome, OutputParity
from covey_converters import tune, tune_view
from covey_converters.tune import Point, Study

BUILDS = st.builds(
    Point,
    target=st.sampled_from(["onnxruntime-int8", "tflite-fp16"]),
    recipe=st.text("abc", max_size=3),
    outcome=st.sampled_from([Outcome.BUILT, Outcome.REFUSED]),
    size=st.integers(1, 4),
    p50_ms=st.one_of(st.none(), st.integers(1, 4).map(float)),
    quality=st.one_of(st.none(), st.sampled_from([0.9, 0.95, 0.99])),
)


def point(target: str, size: int, p50_ms: float, quality: float) -> Point:
    return Point(target=target, recipe="r", outcome=Outcome.BUILT, size=size, p50_ms=p50_ms, quality=quality)


def test_the_front_keeps_what_is_best_in_something() -> None:
    fast, small, good = point("a", 9, 1, 0.9), point("b", 1, 9, 0.9), point("c", 9, 9, 0.99)
    worse, refused = point("d", 9, 2, 0.9), msgspec.structs.replace(point("e", 1, 1, 1), outcome=Outcome.REFUSED)
    marked = tune.marked([fast, small, good, worse, refused])
    assert [one.on_front for one in marked] == [True, True, True, False, False]


@given(st.lists(BUILDS, max_size=8))
def test_nothing_on_the_front_is_beaten_and_all_else_is(points: list[Point]) -> None:
    marked = tune.marked(points)
    usable = [one for one in marked if one.outcome is Outcome.BUILT and None not in (one.p50_ms, one.quality)]
    assert all(one in usable for one in marked if one.on_front)
    assert any(one.on_front for one in marked) == bool(usable)
    for a, b in itertools.permutations(usable, 2):
        costs = [(one.p50_ms or 0, one.size, -(one.quality or 0)) for one in (a, b)]
        if costs[0] != costs[1] and all(x <= y for x, y in zip(*costs, strict=True)):
            assert not b.on_front


def test_quality_is_the_metric_or_else_the_agreement_or_else_the_worst_column() -> None:
    accuracy = Accuracy(metric="top-1 of y", source=1, build=0.98, samples=9, budget=0.1)
    parity = OutputParity(max_error=1, mean_error=1, cosine=0.99, top1_agreement=0.97, column_error=0.05)
    report = BuildReport(target="onnxruntime-int8", outcome=Outcome.BUILT, accuracy=accuracy, parity={"y": parity})
    found = []
    for accuracy_of, agreement in ((accuracy, 0.97), (None, 0.97), (None, None)):
        one = msgspec.structs.replace(parity, top1_agreement=agreement)
        report = msgspec.structs.replace(report, accuracy=accuracy_of, parity={"y": one})
        found.append(tune.point_of(report, "r"))
    assert [one.quality for one in found] == [0.98, 0.97, 0.95]
    assert [one.quality_of for one in found] == [
        "top-1 of y",
        "top-1 agreement with the source",
        "1 - error of the worst column",
    ]


def test_a_latency_is_taken_from_the_report() -> None:
    latency = Latency(p50_ms=1.5, p99_ms=2, load_ms=1, first_ms=1, peak_rss_mb=1, machine="m")
    report = BuildReport(target="onnxruntime-int8", outcome=Outcome.BUILT, size=7, latency=latency)
    assert (tune.point_of(report, "r").p50_ms, tune.point_of(report, "r").size) == (1.5, 7)


def test_targets_without_anything_to_try_say_why() -> None:
    tries, without = tune.candidates(["onnxruntime-fp32", "openvino-int8"], calibrated=False)
    assert tries[0] == ("onnxruntime-fp32", "onnxslim")
    assert {target for target, _ in tries} >= {"onnxruntime-fp32"}
    assert all(one.outcome is Outcome.UNSUPPORTED and one.reason for one in without)


@given(st.lists(BUILDS, max_size=6), st.one_of(st.none(), st.floats(0.1, 10)))
def test_every_study_can_be_drawn(points: list[Point], source_ms: float | None) -> None:
    study = Study(source='<"&.onnx', budget=0.01, source_p50_ms=source_ms, points=tuple(tune.marked(points)))
    drawn = ElementTree.fromstring(tune_view.plot(study))  # noqa: S314  # our own document
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == sum(None not in (one.p50_ms, one.quality) for one in points)
    assert all(0 <= float(one.attrib["cx"]) <= 860 and 0 <= float(one.attrib["cy"]) <= 520 for one in circles)


def test_the_table_begins_with_the_front() -> None:
    refused = Point(target="tflite-int8", recipe="r", outcome=Outcome.REFUSED, reason="falls by 0.0300")
    slow, fast = point("openvino-fp16", 1, 9, 0.9), point("onnxruntime-int8", 9, 1, 0.9)
    beaten = point("onnxruntime-fp32", 9, 2, 0.9)
    console = Console(width=200, record=True, file=io.StringIO())
    study = Study(source="m.onnx", budget=0.01, points=tuple(tune.marked([refused, slow, beaten, fast])))
    console.print(tune_view.table(study))
    lines = console.export_text().splitlines()[1:]
    assert [line.split()[:2] for line in lines[:2]] == [["*", "onnxruntime-int8"], ["*", "openvino-fp16"]]
    assert "another is better in all" in lines[2]
    assert "falls by 0.0300" in lines[3]
