"""The task's metrics: how one is declared and chosen, and what each says of good and bad builds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_converters import metrics
from covey_converters.errors import BadInputError, RecipeError
from covey_converters.metrics import Declared, Judged, classification, detection, embedding
from covey_converters.samples import Samples

Array = NDArray[np.float64]


def samples(count: int = 4, **more: object) -> Samples:
    return Samples(arrays={"x": np.zeros((count, 1), np.float32)}, **more)  # type: ignore[arg-type]


def judged(text: str, source: Array, build: Array, of: Samples, budget: float = 0.01) -> Judged:
    found = metrics.judge(metrics.parse(text), {"out": source}, {"out": build}, of, budget)
    assert found is not None
    return found


# --- declaring and choosing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is none of classification, detection, regions, characters, decisions, embedding"),
        ("accuracy", "is none of"),
        ("os.system", "is none of"),
        ("a:b:c", "is none of"),
        ("detection:boxes", "'boxes' is no option"),
        ("detection:box=0-3", "'box=0-3' is no option"),
        ("classification:figure=f1,figure=recall", "is no option"),
        ("m:" + "f" * 300, "is none of"),
    ],
)
def test_declarations_that_are_none(text: str, line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        metrics.parse(text)


def test_the_option_goes_before_the_file_and_the_file_before_labels() -> None:
    labels = np.array([0, 1, 0, 1])
    assert metrics.chosen("", samples()) is None
    assert metrics.chosen("", samples(labels=labels)) == Declared("classification")
    assert metrics.chosen("", samples(labels=labels, metric="embedding")) == Declared("embedding")
    assert metrics.chosen("detection", samples(labels=labels, metric="embedding")) == Declared("detection")


def test_data_does_not_choose_code() -> None:
    with pytest.raises(BadInputError, match="only an option may"):
        metrics.chosen("", samples(metric="os:system"))


# --- classification ----------------------------------------------------------------------------------------------------


def test_figures_of_classes() -> None:
    found = classification.figures(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1]))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx((0.8 + 0.5 + 0) / 3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_figures_are_shares_and_perfect_for_perfect_predictions(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    assert all(0 <= value <= 1 for value in classification.figures(labels, predicted).values())
    assert set(classification.figures(labels, labels).values()) == {1.0}


def test_a_lost_rare_class_costs_little_accuracy_and_much_f1() -> None:
    labels = np.zeros(200, np.int64)
    labels[:2] = 1
    source = np.eye(2)[labels][:, np.newaxis]
    build = np.eye(2)[np.zeros(200, np.int64)][:, np.newaxis]
    of = samples(200, labels=labels)
    assert judged("classification", source, build, of).accuracy.drop == pytest.approx(0.01)
    by_f1 = judged("classification:figure=f1", source, build, of).accuracy
    assert by_f1.metric == "macro f1 of out"
    assert by_f1.drop > 0.4
    assert by_f1.figures["recall"] == (1.0, 0.5)


def test_labels_beyond_the_scores_are_not_accuracy() -> None:
    out = {"out": np.zeros((4, 1, 3))}
    assert metrics.judge(Declared("classification"), out, out, samples(labels=np.array([0, 1, 2, 3])), 0.01) is None


def test_a_build_that_answers_nonsense_has_no_accuracy() -> None:
    labels = np.array([0, 1, 0, 1])
    source = np.eye(2)[labels][:, np.newaxis]
    found = judged("classification", source, source * np.nan, samples(labels=labels))
    assert found.accuracy.build == 0.0


# --- detection ---------------------------------------------------------------------------------------------------------


def scene(count: int = 5) -> Array:
    """(n, 1, 20, 6): three clear boxes a sample, of two classes, apart from each other; the rest is faint."""
    output = np.full((count, 1, 20, 6), 0.05)
    output[..., :4] = [0, 0, 10, 10]
    for number, (left, column) in enumerate([(20, 4), (120, 5), (220, 4)]):
        output[:, 0, number, :4] = [left, 50, left + 60, 110]
        output[:, 0, number, column] = 0.9
    return output


def test_the_same_detections() -> None:
    found = judged("detection", scene(), scene(), samples(5))
    assert found.accuracy.build == 1.0
    assert not found.objections
    assert found.accuracy.figures["detections"] == (15, 15)


def test_lost_detections_are_lost_recall() -> None:
    build = scene()
    build[:2, 0, 0, 4] = 0.2
    found = judged("detection", scene(), build, samples(5))
    assert found.accuracy.build == pytest.approx(13 / 15)
    assert found.accuracy.figures["detections"] == (15, 13)


@pytest.mark.parametrize(
    ("first_box", "kept"),
    [
        ([20, 50, 80, 110, 0.1, 0.9], 10),  # of another class
        ([50, 50, 110, 110, 0.9, 0.05], 10),  # moved by half its width: IoU 1/3
        ([30, 50, 90, 110, 0.9, 0.05], 15),  # by a sixth: IoU 5/7
    ],
)
def test_what_matches(first_box: list[float], kept: int) -> None:
    build = scene()
    build[:, 0, 0] = first_box
    assert judged("detection", scene(), build, samples(5)).accuracy.build == pytest.approx(kept / 15)


def test_invented_detections_are_refused() -> None:
    build = scene()
    build[0, 0, 10] = [200, 200, 260, 260, 0.8, 0.1]
    found = judged("detection", scene(), build, samples(5))
    assert found.accuracy.build == 1.0
    assert found.objections == ("1 of 16 detections are not the source's; the budget is 0.01",)


def test_boxes_that_overlap_are_one_detection() -> None:
    source = scene()
    source[:, 0, 5] = source[:, 0, 0]
    source[:, 0, 5, 0] += 2
    assert judged("detection", source, scene(), samples(5)).accuracy.figures["detections"] == (15, 15)


def test_other_layouts_say_the_same() -> None:
    """Centre and size, columns first, objectness: all decode to the same boxes."""
    plain = scene(1)[0, 0]
    centred = plain.copy()
    centred[:, 2:4] = plain[:, 2:4] - plain[:, :2]
    centred[:, :2] = (plain[:, :2] + plain[:, 2:4]) / 2
    with_objectness = np.insert(centred, 4, 1.0, axis=1)
    wanted = detection.detections(detection.read_layout({}, {"out": plain[np.newaxis]}), {"out": plain})
    for options, tensor in (
        ({"format": "cxcywh"}, centred),
        ({"format": "cxcywh", "axis": "1"}, centred.T[np.newaxis]),
        ({"format": "cxcywh", "objectness": "4", "scores": "5-"}, with_objectness),
    ):
        layout = detection.read_layout(options, {"out": tensor[np.newaxis]})
        found = detection.detections(layout, {"out": tensor})
        np.testing.assert_allclose(found.boxes, wanted.boxes)
        assert (found.classes == wanted.classes).all()


def test_scores_of_an_output_of_their_own() -> None:
    outputs = {"boxes": scene()[..., :4], "scores": scene()[..., 4:]}
    declared = metrics.parse("detection:output=boxes,scores_output=scores")
    found = metrics.judge(declared, outputs, outputs, samples(5), 0.01)
    assert found is not None
    assert found.outputs == {"boxes", "scores"}
    assert found.accuracy.figures["detections"] == (15, 15)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("boxes=0-2", "does not fit output 'out' of shape"),
        ("scores=9-", "does not fit"),
        ("objectness=9", "does not fit"),
        ("axis=7", "does not fit"),
        ("axis=x", "not a whole number"),
        ("boxes=a-b", "is not FIRST-LAST"),
        ("format=corners", "is none of xyxy"),
        ("threshold=2", "not between 0 and 1"),
        ("output=other", "there is no output 'other'"),
        ("threshold=0.95", "no detection of at least 0.95 in 5 samples"),
    ],
)
def test_layouts_that_do_not_fit(options: str, line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        judged(f"detection:{options}", scene(), scene(), samples(5))


def test_a_broken_detector_finds_nothing() -> None:
    assert judged("detection", scene(), scene() * np.nan, samples(5)).accuracy.build == 0.0


# --- embedding ---------------------------------------------------------------------------------------------------------


def test_embeddings_may_be_longer_but_not_elsewhere() -> None:
    source = np.random.default_rng(0).normal(size=(30, 1, 64))
    assert judged("embedding", source, 3 * source, samples(30)).accuracy.drop == pytest.approx(0)
    noisy = source + np.random.default_rng(1).normal(size=source.shape) * 0.5
    assert judged("embedding", source, noisy, samples(30)).accuracy.drop > 0.05


def test_embeddings_that_fell_together_keep_their_cosine_and_lose_their_order() -> None:
    """A large common part hides in every cosine."""
    generator = np.random.default_rng(0)
    source = generator.normal(size=(30, 1, 64)) + 20
    build = generator.normal(size=(30, 1, 64)) + 20
    found = judged("embedding", source, build, samples(30))
    assert found.accuracy.drop < 0.01
    assert "neighbours keep their order" in found.objections[0]


def test_embeddings_need_neighbours() -> None:
    with pytest.raises(BadInputError, match="at least 3 samples"):
        judged("embedding", np.ones((2, 4)), np.ones((2, 4)), samples(2))


def test_equal_vectors_have_no_order_to_lose() -> None:
    same = np.ones((5, 4))
    assert embedding.rank_agreement(same, same) == pytest.approx(1.0)


# --- the operator's own ------------------------------------------------------------------------------------------------

CODE = """
import numpy as np

def right(outputs, evaluation):
    return float(np.mean(outputs["out"][:, 0] > evaluation["limit"]))

def crashes(outputs, evaluation):
    raise KeyError("no such thing")

def crashes_on_builds(outputs, evaluation):
    if outputs["out"].max() < 1:
        raise ValueError("too small")
    return 1.0

def nothing(outputs, evaluation):
    return None

def endless(outputs, evaluation):
    return float("nan")

def spoils(outputs, evaluation):
    outputs["out"][:] = 0
    return 1.0

number = 3
"""


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_metrics.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_metrics", None)


@pytest.mark.usefixtures("own_metrics")
def test_a_function_judges() -> None:
    of = samples(others={"limit": np.array(0.5)})
    found = judged("own_metrics:right", np.ones((4, 1)), np.array([[1.0], [1.0], [1.0], [0.0]]), of)
    assert found.accuracy.metric == "own_metrics:right"
    assert (found.accuracy.source, found.accuracy.build) == (1.0, 0.75)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("own_metrics:crashes", "metric own_metrics:crashes failed: KeyError: 'no such thing'"),
        ("own_metrics:nothing", "failed: TypeError"),
        ("own_metrics:endless", "gave nan; a finite number is needed"),
        ("own_metrics:absent", "AttributeError"),
        ("own_metrics:number", "is not a function"),
        ("no_such_module_here:f", "ModuleNotFoundError"),
    ],
)
@pytest.mark.usefixtures("own_metrics")
def test_functions_that_do_not_judge(name: str, line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        judged(name, np.ones((4, 1)), np.ones((4, 1)), samples())


@pytest.mark.usefixtures("own_metrics")
def test_a_function_that_fails_on_a_build_fails_that_recipe() -> None:
    with pytest.raises(RecipeError, match="failed: ValueError: too small"):
        judged("own_metrics:crashes_on_builds", np.ones((4, 1)), np.zeros((4, 1)), samples())


@pytest.mark.usefixtures("own_metrics")
def test_a_function_cannot_change_what_is_judged() -> None:
    source = np.ones((4, 1))
    judged("own_metrics:spoils", source, source, samples())
    assert (source == 1).all()


@pytest.mark.usefixtures("own_metrics")
def test_a_function_needs_real_data() -> None:
    with pytest.raises(BadInputError, match="needs an evaluation"):
        judged("own_metrics:right", np.ones((4, 1)), np.ones((4, 1)), samples(synthetic=True))
