"""The evaluation set's counts, and that a device's runner counts the same: two sides of one rule."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_agent.gateway.tally import Tally
from covey_agent.runner.counting import Counter
from covey_agent.runner.protocol import Result
from covey_contract.drift import MAX_CLASSES, OutputCounts, OutputKind, OutputReference, Reference, merge
from covey_converters.reference import reference_of
from covey_converters.samples import Samples

Array = NDArray[Any]


def samples(count: int, labels: list[int] | None = None) -> Samples:
    images = np.random.default_rng(0).normal(size=(count, 1, 4, 4)).astype(np.float32)
    return Samples({"image": images}, labels=None if labels is None else np.array(labels))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def referenced(arrays: list[Array], labels: list[int] | None = None) -> OutputReference:
    made = reference_of(samples(len(arrays), labels), [{"y": array} for array in arrays])
    assert made is not None
    return made.outputs["y"]


def counted_on_device(reference: OutputReference, arrays: list[Array]) -> OutputCounts:
    whole = Reference(samples=0, outputs={"y": reference})
    counter, tally = Counter(whole), Tally(whole)
    for array in arrays:
        seen = counter.outputs({"y": array})
        result = msgspec.msgpack.decode(
            msgspec.msgpack.encode(Result(id=1, compute_s=0.0, outputs=(), outputs_seen=seen)), type=Result
        )
        tally.add(result)
    return tally.take()[0].get("y", OutputCounts())


def draws(shape: tuple[int, ...], count: int = 40, seed: int = 1) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=shape) * 3).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize(
    ("arrays", "labels", "kind"),
    [
        ([softmax(array) for array in draws((1, 10))], None, OutputKind.PROBABILITIES),
        ([softmax(array) for array in draws((1, 25, 37))], None, OutputKind.PROBABILITIES),  # a text reader's steps
        (draws((1, 10)), [1] * 40, OutputKind.LOGITS),
        ([1 / (1 + np.exp(-array)) for array in draws((1, 10))], [9] * 40, OutputKind.PROBABILITIES),
        (draws((1, 10)), [10] * 40, OutputKind.VALUES),  # labels that are no columns of it
        (draws((1, 10)), None, OutputKind.VALUES),
        (draws((1, 8, 85)), [1] * 40, OutputKind.VALUES),  # a detector
        (draws((1, 1)), [0] * 40, OutputKind.VALUES),
        (draws(()), None, OutputKind.VALUES),
        ([np.array([index % 3], np.int64) for index in range(40)], None, OutputKind.VALUES),
    ],
)
def test_what_kind_of_output_it_is_and_the_device_counts_alike(
    arrays: list[Array], labels: list[int] | None, kind: OutputKind
) -> None:
    reference = referenced(arrays, labels)
    assert reference.kind is kind
    assert reference.counts.count > 0
    assert counted_on_device(reference, arrays) == msgspec.structs.replace(
        reference.counts, classes=dict(sorted(reference.counts.classes.items()))
    )


def test_class_counts_are_those_of_the_answers() -> None:
    logits = [np.full((1, 4), -5.0, np.float32) for _ in range(6)]
    for array, top in zip(logits, [0, 0, 0, 2, 2, 3], strict=True):
        array[0, top] = 5.0
    reference = referenced(logits, [0] * 6)
    assert reference.counts.classes == {0: 3, 2: 2, 3: 1}
    assert reference.counts.scores[-1] == 6  # each is nearly sure


def test_values_fall_into_bins_of_about_the_same_size() -> None:
    reference = referenced(draws((1, 50), count=100))
    assert len(reference.counts.values) == 20
    assert max(reference.counts.values) <= 2 * min(reference.counts.values)


def test_few_different_values_have_a_bin_each() -> None:
    labels = [np.array([index % 3], np.int64) for index in range(30)]
    reference = referenced(labels)
    assert reference.counts.values == (10, 10, 10)
    assert counted_on_device(reference, [np.array([7], np.int64)]).values == (0, 0, 1)


def test_an_output_that_never_changed_shows_when_it_does() -> None:
    reference = referenced([np.ones((1, 3), np.float32)] * 5)
    assert reference.counts.values == (0, 15, 0)
    moved = counted_on_device(reference, [np.array([[0.9, 1.0, 1.1]], np.float32)])
    assert moved.values == (1, 1, 1)


def test_more_classes_than_there_are_bins_share_the_last() -> None:
    array = np.zeros((1, 5000), np.float32)
    array[0, 4321] = 1.0
    reference = referenced([array])
    assert reference.counts.classes == {MAX_CLASSES - 1: 1}
    assert counted_on_device(reference, [array]).classes == {MAX_CLASSES - 1: 1}


def test_a_model_of_many_large_outputs_keeps_its_manifest_small() -> None:
    generator = np.random.default_rng(0)
    answers = []
    for _ in range(2000):
        answers.append({f"y{n}": softmax(generator.normal(size=(1, 1000)).astype(np.float32) * 9) for n in range(6)})
    made = reference_of(samples(len(answers)), answers)
    assert made is not None
    assert 1 <= len(made.outputs) < 6
    assert len(msgspec.json.encode(made)) < 33 * 1024


def test_without_real_data_there_is_no_reference() -> None:
    made_up = Samples({"image": np.zeros((3, 1), np.float32)}, synthetic=True)
    assert reference_of(made_up, [{"y": np.zeros((1, 2), np.float32)}] * 3) is None


def test_an_inputs_range_leaves_some_room() -> None:
    pictures = Samples({"image": np.array([[0], [255]], np.uint8), "gain": np.array([[0.0], [1.0]], np.float32)})
    made = reference_of(pictures, [{"y": np.zeros((1, 2), np.float32)}] * 2)
    assert made is not None
    assert (made.inputs["image"].low, made.inputs["image"].high) == (0, 255)
    assert (made.inputs["gain"].low, made.inputs["gain"].high) == pytest.approx((-0.1, 1.1))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    columns=st.integers(2, 40),
    seed=st.integers(0, 1000),
    cut=st.integers(1, 5),
    unit=st.booleans(),
)
def test_windows_of_any_cut_add_up_to_the_whole(rows: int, columns: int, seed: int, cut: int, unit: bool) -> None:
    arrays = draws((1, rows, columns), count=6, seed=seed)
    if unit:
        arrays = [softmax(array) for array in arrays]
    reference = referenced(arrays)
    parts = [counted_on_device(reference, arrays[:cut]), counted_on_device(reference, arrays[cut:])]
    assert merge(parts) == counted_on_device(reference, arrays)
