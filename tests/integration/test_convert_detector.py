"""INT8 builds of detectors keep their detections: one output mixes boxes (0 to 320) with scores (0 to 1), so that one scale cannot serve both.

A small one is made on the spot; NudeNet's is taken where `./dev matrix` has fetched it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.matrix.models import detector
from benchmarks.matrix.packages import CACHE
from benchmarks.matrix.subject import Purpose
from covey_contract.building import BuildReport, Outcome
from covey_converters import layers, toolchain
from covey_converters.backends import backend_for
from covey_converters.isolation import build_isolated
from covey_converters.spec import BuildSpec, Limits

REAL = CACHE / "packages" / detector.SUBJECT.source
LAYOUT = "detection:boxes=0-3,scores=4-,format=cxcywh,axis=1,threshold=0.3"
TARGETS = [
    "onnxruntime-int8",
    "openvino-int8",
    pytest.param(
        "tflite-int8",
        marks=pytest.mark.skipif(
            toolchain.find("onnx2tf", toolchain.places(os.environ)).folder is None,
            reason="toolchain onnx2tf is not installed: covey-convert toolchain install onnx2tf",
        ),
    ),
]
pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image [1, 3, 64, 64] -> three convolutions -> boxes and scores of 64 places in one tensor [1, 7, 64]; random weights, real enough to round."""
    folder = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(4)
    weights: dict[str, Any] = {
        name: (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:])) * 1.6).astype(np.float32)
        for name, shape in {
            "one": (16, 3, 3, 3), "two": (32, 16, 3, 3), "three": (32, 32, 3, 3), "boxes": (4, 32, 1, 1), "scores": (3, 32, 1, 1),
        }.items()
    }  # fmt: skip
    weights["scores.bias"] = np.full(3, -3, np.float32)
    weights["boxes.bias"] = np.array([160, 160, 60, 60], np.float32)
    weights["places"] = np.array([1, 7, 64], np.int64)
    nodes, last = [], "image"
    for name in ("one", "two", "three"):
        nodes.append(helper.make_node("Conv", [last, name], [f"{name}.sums"], name, strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}.sums"], [f"{name}.out"], f"{name}.relu"))
        last = f"{name}.out"
    nodes += [
        helper.make_node("Conv", [last, "boxes", "boxes.bias"], ["boxes.out"], "boxes"),
        helper.make_node("Conv", [last, "scores", "scores.bias"], ["scores.sums"], "scores"),
        helper.make_node("Sigmoid", ["scores.sums"], ["scores.out"], "sigmoid"),
        helper.make_node("Concat", ["boxes.out", "scores.out"], ["both"], "concat", axis=1),
        helper.make_node("Reshape", ["both", "places"], ["output0"], "reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 7, 64])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "made.onnx")
    )
    for name, count in (("calibration", 32), ("evaluation", 60)):
        images = generator.normal(size=(count, 1, 3, 8, 8)).repeat(8, axis=3).repeat(8, axis=4)
        np.savez(folder / f"{name}.npz", image=(images + generator.normal(size=images.shape) / 4).astype(np.float32))
    return folder


def build(folder: Path, out: Path, target: str, **given: Any) -> BuildReport:
    (folder / "work").mkdir(exist_ok=True)
    spec = BuildSpec(
        model="detector",
        version="1",
        target=target,
        source=str(folder / "made.onnx"),
        out=str(out),
        work=str(folder / "work"),
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        metric=LAYOUT,
        budget=0.05,
        measure_seconds=0.2,
    )
    return build_isolated(msgspec.structs.replace(spec, **given), Limits(seconds=380))


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_in_float_keeps_what_one_scale_loses(made: Path, tmp_path: Path, target: str) -> None:
    backend, precision = backend_for(target)
    plain, *others = backend.recipes(precision, calibrated=True)
    if target != "openvino-int8":  # NNCF rounds what goes into layers with weights, and this one's outputs go into none
        lost = build(made, tmp_path / "plain", target, recipe=plain)
        assert lost.outcome is Outcome.REFUSED, lost.reason
        assert "matched-box recall of output0" in lost.reason
    report = build(made, tmp_path / "head", target, recipe=next(name for name in others if name.endswith("float head")))
    assert report.outcome is Outcome.BUILT, report.reason
    assert report.accuracy is not None
    assert report.accuracy.build >= 0.95


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples for NudeNet's detector, and what one target finds out about its layers for the next."""
    if not REAL.exists():
        pytest.skip("NudeNet's detector is not here: ./dev matrix --model detector fetches it")
    folder = tmp_path_factory.mktemp("real")
    for purpose, count in ((Purpose.CALIBRATION, 32), (Purpose.EVALUATION, 84)):
        drawn = detector.SUBJECT.draw(CACHE / "packages", count, purpose)
        np.savez(folder / f"{purpose.name.lower()}.npz", images=drawn.arrays["images"])
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_a_real_detector_keeps_its_detections_and_is_faster(real: Path, tmp_path: Path, target: str) -> None:
    """By the recipe that leaves least in float; the matrix holds builds to a smaller budget, which takes more."""
    subject = detector.SUBJECT
    backend, precision = backend_for(target)
    measured = [name for name in backend.recipes(precision, calibrated=True) if "costliest" in name]
    assert len(measured) == len(layers.recipes(""))
    given = {"source": str(REAL), "shapes": subject.shapes, "metric": subject.metric, "recipe": measured[0]}
    report = build(real, tmp_path / "out", target, recipe_seconds=350.0, **given)
    assert report.outcome is Outcome.BUILT, report.reason
    assert report.accuracy is not None
    assert report.accuracy.build >= 0.95
    assert report.latency is not None
    assert report.source_latency is not None
    assert report.source_latency.cpu_ms is not None
    assert report.latency.cpu_ms is not None
    assert report.source_latency.cpu_ms > 1.3 * report.latency.cpu_ms
