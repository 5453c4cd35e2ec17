"""The matrix's judges and its table, without its models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.matrix.cells import Cell, verdict
from benchmarks.matrix.models import SUBJECTS, detector, file_type, text_finder, text_reader, voice
from benchmarks.matrix.subject import Arrays, Drawn, Score
from benchmarks.matrix.table import Run, page, record

NOWHERE = Path()


def cell(model: str, target: str, **given: Any) -> Cell:
    return msgspec.structs.replace(Cell(model=model, target=target, outcome="built"), **given)


@pytest.mark.parametrize(
    ("source", "build", "samples", "wrong"),
    [
        (1.0, 0.99, 200, ""),
        (1.0, 0.97, 200, "accuracy: 1.000 -> 0.970 on 200, more than 0.01 lost"),
        # One sample of a few is no finding.
        (1.0, 0.95, 20, ""),
        (0.5, 0.9, 200, ""),
    ],
)
def test_a_verdict(source: float, build: float, samples: int, wrong: str) -> None:
    assert verdict(Score("accuracy", source, build, samples), 0.01) == wrong


def detections_of(*boxes: tuple[float, float, float, float, float]) -> Arrays:
    """Boxes (centre x, centre y, width, height, score) of one class of two."""
    table = np.zeros((1, 6, len(boxes)), np.float32)
    for index, box in enumerate(boxes):
        table[0, :5, index] = box
    return {"output0": table}


def test_lost_boxes_count() -> None:
    drawn = Drawn({"images": np.zeros((3, 1, 3, 4, 4), np.float32)})
    truth = detections_of((50, 50, 20, 20, 0.9), (150, 50, 20, 20, 0.6), (151, 50, 20, 20, 0.5), (250, 9, 9, 9, 0.1))
    # The second box is lost; the third was the second's double.
    answer = detections_of((52, 50, 20, 20, 0.8), (150, 50, 20, 20, 0.2))
    score = detector.judge(NOWHERE, drawn, lambda _: truth, lambda _: answer)
    assert (score.source, score.build, score.samples) == (1.0, 0.5, 6)


def test_misread_characters_count() -> None:
    def answer(*classes: int) -> Arrays:
        return {"scores": np.eye(5, dtype=np.float32)[list(classes)][np.newaxis]}

    drawn = Drawn({"x": np.zeros((1, 1), np.float32)})
    # Repetitions are one character unless a blank (0) is between them: 1 1 2 3 against 1 2 4.
    score = text_reader.judge(NOWHERE, drawn, lambda _: answer(1, 0, 1, 2, 2, 3), lambda _: answer(1, 1, 2, 2, 0, 4))
    assert score.samples == 4
    assert score.build == pytest.approx(0.5)


def test_regions_that_are_not_found_count() -> None:
    page_of_text = np.zeros((1, 1, 64, 64), np.float32)
    page_of_text[0, 0, 4:12, 4:40] = page_of_text[0, 0, 30:40, 4:40] = 0.9
    half = page_of_text.copy()
    half[0, 0, 30:] = 0
    drawn = Drawn({"x": np.zeros((1, 1), np.float32)})
    score = text_finder.judge(NOWHERE, drawn, lambda _: {"y": page_of_text}, lambda _: {"y": half})
    assert (score.build, score.samples) == (0.5, 2)


def test_a_state_is_carried_by_each_for_itself() -> None:
    def counter(most: float) -> Any:
        def ask(inputs: Mapping[str, Any]) -> Arrays:
            state = inputs["state"] + np.float32(0.02)
            return {"stateN": state, "output": np.minimum(state[:1, :1, 0], np.float32(most))}

        return ask

    arrays: Arrays = {"input": np.zeros((40, 1, 576), np.float32), "state": np.ones((40, 2, 1, 128), np.float32)}
    score = voice.judge(NOWHERE, Drawn(arrays), counter(1.0), counter(0.1))
    # The source speaks up after 25 chunks; the state that was drawn is not used.
    assert score.build == pytest.approx(25 / 40, abs=0.03)


def test_the_beginning_and_the_end_of_a_file() -> None:
    row = file_type.features(b"  ab c \n")
    assert row[:5].tolist() == [*b"ab c "]
    assert row[1023] == 256
    assert row[-6:].tolist() == [*b"  ab c"]


def test_every_model_has_a_name_of_its_own() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)


def test_the_object_and_the_page_tell_of_every_cell() -> None:
    cells = [
        cell("text-angle", "onnxruntime-int8", cpu_ms=1.0, source_cpu_ms=2.0, source_score=1.0, build_score=0.995),
        cell("text-angle", "tflite-int8", outcome="refused", reason="agrees | on 3 %"),
        cell("text-angle", "tensorrt-rtx-fp32", outcome="checked", reason="fit"),
        cell("detector", "openvino-int8", build_score=0.5, wrong="boxes matched: 1 -> 0.5"),
    ]
    result = record(SUBJECTS, cells, date="2026-11-21", quick=False, run=Run())
    assert (result["models"], result["cells"], result["built"], result["refused"], result["wrong"]) == (2, 3, 2, 1, 1)
    assert result["int8_speedup"] == {"onnxruntime": 2.0, "openvino": None, "tflite": None}
    assert result["int8_accuracy_drop"]["onnxruntime"] == pytest.approx(0.005)
    assert result["detector_recall"] == {"openvino-int8": 0.5}
    text = page(SUBJECTS, cells, result)
    assert "**2 of 3 cells built**, 1 of them wrong" in text
    assert "agrees / on 3 %" in text
    assert "2.00×" in text
