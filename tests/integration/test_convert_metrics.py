"""The gate by the task's metric, in real build processes: a detector that loses its boxes, metrics of the operator's own."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_contract.building import BuildReport, Outcome
from covey_contract.manifest import FileEntry
from covey_converters import folder
from covey_converters.isolation import build_isolated
from covey_converters.provenance import sha256_of
from covey_converters.spec import BuildSpec, Limits
from covey_hil.digits import data

COMMAND = str(Path(sys.executable).with_name("covey-convert"))
ANCHORS = 64


def two_scales(path: Path) -> Path:
    """A detector in small: image [1, 3, 8, 8] -> Conv, Relu, then a branch of boxes (0 to 320) and one of scores (0 to 1), joined into
    one tensor [1, 64, 6]. A bright pixel is a detection: of class 0 if it is red, of class 1 if it is green."""
    first = np.zeros((4, 3, 1, 1), np.float32)
    first[0, 0], first[1, 1], first[2, 2], first[3, :] = 1.0, 1.0, 1.0, 0.3
    boxes = np.zeros((4, 4, 1, 1), np.float32)
    boxes[:, 2] = 8.0
    scores = np.zeros((2, 4, 1, 1), np.float32)
    scores[0, 0], scores[1, 1] = 12.0, 12.0
    column, row = np.meshgrid(np.arange(8.0), np.arange(8.0))
    offset = np.stack([column * 40, row * 40, column * 40 + 32, row * 40 + 32])[np.newaxis].astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], name="stem"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "boxes"], ["c"], name="boxes"),
        helper.make_node("Add", ["c", "offset"], ["d"], name="place"),
        helper.make_node("Conv", ["b", "scores", "bias"], ["e"], name="scores"),
        helper.make_node("Sigmoid", ["e"], ["f"], name="sigmoid"),
        helper.make_node("Concat", ["d", "f"], ["g"], name="join", axis=1),
        helper.make_node("Reshape", ["g", "shape"], ["h"], name="flat"),
        helper.make_node("Transpose", ["h"], ["out"], name="turn", perm=[0, 2, 1]),
    ]
    constants = {
        **{"first": first, "boxes": boxes, "offset": offset, "scores": scores},
        "bias": np.full(2, -6.0, np.float32),
        "shape": np.array([1, 6, ANCHORS], np.int64),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two-scales",
        [info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [info("out", TensorProto.FLOAT, [1, ANCHORS, 6])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def scenes(path: Path, **more: Any) -> Path:
    """40 dim images with two bright pixels each, which the detector is sure of to some 60 %."""
    generator = np.random.default_rng(4)
    images = (generator.random((40, 3, 8, 8)) * 0.3).astype(np.float32)
    for number, image in enumerate(images):
        image[0, number % 8, 2] = 0.54
        image[1, number % 8, 5] = 0.53
    np.savez(path, image=images, **more)
    return path


def spec(source: Path, out: Path, **more: Any) -> BuildSpec:
    work = str(out.parent / "work")
    fields = {"model": "m", "version": "1", "target": "onnxruntime-int8", "measure_seconds": 0.05}
    return BuildSpec(source=str(source), out=str(out), work=work, **{**fields, **more})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    calibration, evaluation, _ = data.write_samples(tmp_path_factory.mktemp("digits"))
    return data.model_path("1.0"), calibration, evaluation


# The one that overflows on no CPU.
STATIC = "static QDQ, MinMax, unsigned activations, 7-bit weights"


@pytest.mark.parametrize("metric", ["", "detection:format=xyxy,scores=4-,threshold=0.3"])
def test_the_detector_trap_is_refused_with_and_without_its_metric(tmp_path: Path, metric: str) -> None:
    """All of it in INT8: near-perfect cosine, no detections."""
    source, samples = two_scales(tmp_path / "two.onnx"), scenes(tmp_path / "scenes.npz")
    data_of = {"calibration": str(samples), "evaluation": str(samples)}
    report = build_isolated(spec(source, tmp_path / "out", recipe=STATIC, metric=metric, **data_of), Limits())
    assert report.outcome is Outcome.REFUSED, report
    assert report.parity["out"].cosine > 0.999
    assert ("matched-box recall" if metric else "of the column's range") in report.reason
    assert report.tries[0].figures["column_error"] > 0.15


def test_another_recipe_keeps_the_detections(tmp_path: Path) -> None:
    """Refused, tried again with the next recipe, and built; every try is on record with its figures. The file declares the metric."""
    source = two_scales(tmp_path / "two.onnx")
    samples = scenes(tmp_path / "scenes.npz", metric="detection:threshold=0.3")
    data_of = {"calibration": str(samples), "evaluation": str(samples)}
    report = build_isolated(spec(source, tmp_path / "out", budget=0.05, **data_of), Limits())
    assert report.outcome is Outcome.BUILT, report
    refused = next(tried for tried in report.tries if tried.outcome is Outcome.REFUSED)
    assert refused.figures["drop"] > 0.4
    assert report.accuracy is not None
    assert report.accuracy.build >= 0.95
    assert report.recipe == report.tries[-1].recipe


METRICS = """
import os
import numpy as np

def right(outputs, evaluation):
    return float(np.mean(outputs["logits"].reshape(450, 10).argmax(1) == evaluation["labels"]))

def raises(outputs, evaluation):
    raise RuntimeError("the metric's own words")

def takes_the_process_down(outputs, evaluation):
    os.abort()
"""


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("right", Outcome.BUILT, ""),
        ("raises", Outcome.FAILED, "metric own:raises failed: RuntimeError: the metric's own words"),
        ("takes_the_process_down", Outcome.FAILED, "the build process was killed by SIGABRT"),
    ],
)
def test_metrics_of_the_operator_s_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: tuple[Path, Path, Path],
    name: str,
    outcome: Outcome,
    reason: str,
) -> None:
    (tmp_path / "own.py").write_text(METRICS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source, calibration, evaluation = digits
    given = {"calibration": str(calibration), "evaluation": str(evaluation), "metric": f"own:{name}"}
    report: BuildReport = build_isolated(spec(source, tmp_path / "out", **given), Limits())
    assert report.outcome is outcome, report
    assert report.reason.startswith(reason)
    if outcome is Outcome.BUILT:
        assert report.accuracy is not None
        assert report.accuracy.metric == "own:right"
        assert report.accuracy.source > 0.9
        _check_provenance(tmp_path / "out", evaluation)


def _check_provenance(place: Path, evaluation: Path) -> None:
    manifest = folder.read_manifest(place)
    statement = json.loads((place / "provenance.json").read_bytes())
    assert sha256_of(place / "provenance.json") == manifest.provenance_sha256
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    files: tuple[FileEntry, ...] = manifest.files
    assert subjects == {file.path: file.sha256 for file in files}
    definition = statement["predicate"]["buildDefinition"]
    materials = {one["name"]: one.get("digest", {}).get("sha256") for one in definition["resolvedDependencies"]}
    assert materials["evaluation"] == sha256_of(evaluation)
    assert {"source", "calibration", "onnxruntime"} <= materials.keys()
    assert definition["externalParameters"]["metric"] == "own:right"
    (place / "provenance.json").write_text("{}")
    assert folder.problems(place) == ["provenance.json does not have the digest that the manifest says"]


def test_tune_prints_the_front_and_draws_it(tmp_path: Path, digits: tuple[Path, Path, Path]) -> None:
    source, _, evaluation = digits
    done = subprocess.run(
        [
            *(COMMAND, "tune", str(source), "--evaluation", str(evaluation), "--json"),
            *("--target", "onnxruntime-fp32", "--target", "tensorrt-int8-sm87"),
            *("--measure-seconds", "0.05", "--plot", str(tmp_path / "t.svg")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    study = json.loads(done.stdout)
    points = study["points"]
    assert [one["target"] for one in points if one["outcome"] == "unsupported"] == ["tensorrt-int8-sm87"]
    built = [one for one in points if one["outcome"] == "built"]
    assert [one["recipe"] for one in built] == ["onnxslim", "as it came"]
    assert any(one["on_front"] for one in built)
    assert all(one["quality_of"] == "top-1 of logits" and one["quality"] > 0.95 for one in built)
    assert study["source_p50_ms"] > 0
    assert len(ElementTree.parse(tmp_path / "t.svg").getroot()) > 10  # noqa: S314  # our own document


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--metric", "nonsense"), "metric 'nonsense' is none of"),
        (("--metric", "no_such_module_here:f"), "ModuleNotFoundError"),
    ],
)
def test_metrics_that_are_none_are_one_line(
    tmp_path: Path, digits: tuple[Path, Path, Path], words: tuple[str, ...], line: str
) -> None:
    source, _, evaluation = digits
    given = [str(source), "--evaluation", str(evaluation), "--target", "onnxruntime-fp32", "-o", str(tmp_path / "o")]
    done = subprocess.run([COMMAND, "build", *given, *words], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
