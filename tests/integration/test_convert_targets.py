"""Real builds of the demo's model for every target that a CPU can build, and the gate on builds that are broken on purpose."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.runner import golden, tensors
from covey_contract.building import BuildReport, Outcome
from covey_contract.manifest import Runtime
from covey_converters import folder, toolchain
from covey_converters.backend import Backend, Built, Session, Source
from covey_converters.backends import BACKENDS, CPU_TARGETS, backend_for
from covey_converters.build import build
from covey_converters.isolation import build_isolated
from covey_converters.samples import Samples
from covey_converters.spec import BuildSpec, Limits
from covey_hil.digits import data

COMMAND = str(Path(sys.executable).with_name("covey-convert"))

pytestmark = [
    pytest.mark.skipif(
        toolchain.find("onnx2tf", toolchain.places(os.environ)).folder is None,
        reason="toolchain onnx2tf is not installed: covey-convert toolchain install onnx2tf",
    ),
    # One fixture builds eight targets, which a busy machine stretches.
    pytest.mark.timeout(400),
    # Toolchains warn of their own future in the process that runs them; ours are in build processes, except in these tests.
    pytest.mark.filterwarnings("ignore"),
]


@dataclass(frozen=True)
class Inputs:
    """The demo's model with real images."""

    source: Path
    calibration: Path
    evaluation: Path
    labels: Path
    out: Path

    def spec(self, target: str, out: Path) -> BuildSpec:
        return BuildSpec(
            model="digits",
            version="1.0",
            target=target,
            source=str(self.source),
            out=str(out),
            work=str(self.out / "work"),
            calibration=str(self.calibration),
            evaluation=str(self.evaluation),
            labels=str(self.labels),
            measure_seconds=0.05,
        )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    base = tmp_path_factory.mktemp("digits")
    calibration, evaluation, labels = data.write_samples(base)
    return Inputs(data.model_path("1.0"), calibration, evaluation, labels, base)


@pytest.fixture(scope="module")
def built(inputs: Inputs) -> dict[str, Any]:
    """The answer of `covey-convert build --json` for all targets at once."""
    targets = [word for target in CPU_TARGETS for word in ("--target", target)]
    done = subprocess.run(
        [
            *(COMMAND, "build", str(inputs.source), *targets, "-o", str(inputs.out / "builds"), "--json"),
            *("--calibration", str(inputs.calibration), "--evaluation", str(inputs.evaluation)),
            *(
                "--labels",
                str(inputs.labels),
                "--model",
                "digits",
                "--model-version",
                "1.0",
                "--measure-seconds",
                "0.05",
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_every_target_is_built_and_within_its_budget(built: dict[str, Any], inputs: Inputs, target: str) -> None:
    [found] = [one for one in built["builds"] if one["target"] == target]
    place = inputs.out / "builds" / target
    manifest, report = folder.read_manifest(place), folder.read_report(place)
    assert found["digest"] == folder.digest_of(place)
    assert report.outcome is Outcome.BUILT
    assert folder.problems(place) == []
    assert report.accuracy is not None
    assert report.accuracy.samples == 450
    assert report.accuracy.source > 0.95
    assert report.accuracy.drop <= report.accuracy.budget
    assert report.latency is not None
    assert report.source_latency is not None
    assert 0 < report.latency.p50_ms <= report.latency.p99_ms
    assert manifest.memory_mb == report.latency.peak_rss_mb
    assert manifest.runtime is BACKENDS[manifest.runtime].runtime
    # Callers see the source's signature, whatever the build made of it.
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.inputs] == [("image", "FP32", (1, 1, 32, 32))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.outputs] == [("logits", "FP32", (1, 10))]
    assert (place / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]


def test_int8_builds_are_smaller(built: dict[str, Any]) -> None:
    sizes = {one["target"]: one["size"] for one in built["builds"]}
    assert sizes["onnxruntime-int8"] < 0.8 * sizes["onnxruntime-fp32"]
    assert sizes["tflite-int8"] < 0.8 * sizes["tflite-fp32"]
    assert sizes["openvino-fp16"] < sizes["openvino-fp32"]


def test_the_precision_that_openvino_computes_in_is_part_of_the_build(built: dict[str, Any], inputs: Inputs) -> None:
    assert built
    hints = {
        target: folder.read_manifest(inputs.out / "builds" / target).options["INFERENCE_PRECISION_HINT"]
        for target in CPU_TARGETS
        if target.startswith("openvino")
    }
    assert hints == {"openvino-fp32": "f32", "openvino-fp16": "f16", "openvino-int8": "f32"}


@pytest.mark.parametrize("target", ["onnxruntime-int8", "openvino-int8", "tflite-int8"])
def test_golden_vectors_hold_on_other_kernels(built: dict[str, Any], inputs: Inputs, target: str) -> None:
    """What a device checks after loading, here with the kernels that made the vectors and with others."""
    assert built
    place = inputs.out / "builds" / target
    manifest = folder.read_manifest(place)
    with np.load(place / "golden.npz", allow_pickle=False) as arrays:
        images, wanted = arrays["in/image"], arrays["out/logits"]
    assert images.shape == (6, 1, 1, 32, 32)
    limit = manifest.tolerance["logits"].absolute + manifest.tolerance["logits"].relative * np.abs(wanted)
    assert limit.max() < 0.25 * np.abs(wanted).max()
    backend = BACKENDS[manifest.runtime]
    for threads, reference in ((1, False), (2, False), (1, True)):
        session = backend.open(folder.built_from(place, manifest), threads=threads, reference=reference)
        got = np.stack([session.run({"image": image})["logits"] for image in images])
        assert (np.abs(got - wanted) <= limit).all()


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_the_device_s_runner_loads_the_build_and_agrees(built: dict[str, Any], inputs: Inputs, target: str) -> None:
    """The other side of the contract: names, layouts, options and tolerances as the agent understands them."""
    assert built
    place = inputs.out / "builds" / target
    manifest = folder.read_manifest(place)
    runner = importlib.import_module(f"covey_agent.runner.backends.{manifest.runtime.value}")
    model = runner.load(place, manifest, threads=1)
    for given, wanted in golden.read_golden(place / "golden.npz", manifest):
        got = tensors.map_outputs(manifest.outputs, model.run(tensors.map_inputs(manifest.inputs, given)))
        assert golden.mismatch(wanted, got, manifest.tolerance) is None


def test_verify_finds_good_builds_good_and_bad_ones_bad(built: dict[str, Any], inputs: Inputs) -> None:
    assert built
    place = inputs.out / "builds" / "onnxruntime-fp32"
    done = subprocess.run([COMMAND, "verify", str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("onnxruntime-fp32: good (logits within ")
    model = place / "model.onnx"
    whole = model.read_bytes()
    try:
        model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = subprocess.run([COMMAND, "verify", str(place), "--json"], capture_output=True, text=True, check=False)
    finally:
        model.write_bytes(whole)
    assert done.returncode == 1
    [verdict] = json.loads(done.stdout)
    assert verdict["problems"] == ["model.onnx does not have the digest that the manifest says"]


@pytest.mark.parametrize("target", ["onnxruntime-fp32", "onnxruntime-int8", "openvino-int8", "tflite-int8"])
def test_the_same_inputs_give_the_same_bytes(built: dict[str, Any], inputs: Inputs, target: str) -> None:
    """All files but the manifest, which holds the memory that was measured."""
    assert built
    again = inputs.out / "again" / target
    report = build_isolated(inputs.spec(target, again), Limits())
    assert report.outcome is Outcome.BUILT
    first, second = folder.read_manifest(inputs.out / "builds" / target), folder.read_manifest(again)
    assert first.files == second.files
    assert first.tolerance == second.tolerance


# --- the gate -------------------------------------------------------------------------------------------------------------


class Broken:
    """A backend whose builds are broken after they are made."""

    def __init__(self, backend: Backend, spoil: Callable[[Path], None]) -> None:
        self._backend = backend
        self._spoil = spoil
        self.runtime: Runtime = backend.runtime
        self.module = backend.module
        self.packages = backend.packages

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        return self._backend.recipes(precision, calibrated=calibrated)

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        built = self._backend.build(source, target, recipe, calibration, folder)
        self._spoil(folder)
        return built

    def open(self, built: Built, *, threads: int, reference: bool = False) -> Session:
        return self._backend.open(built, threads=threads, reference=reference)


def _spoil_onnx(place: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(place / "model.onnx"))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(model, str(place / "model.onnx"))


def _spoil_scales(place: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(place / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and not tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.1), tensor.name))
    onnx.save(model, str(place / "model.onnx"))


def _spoil_openvino(place: Path) -> None:
    """Zero a stretch of the weights."""
    raw = bytearray((place / "model.bin").read_bytes())
    raw[len(raw) // 4 : len(raw) // 2] = bytes(len(raw) // 2 - len(raw) // 4)
    (place / "model.bin").write_bytes(raw)


def _spoil_tflite(place: Path) -> None:
    """Zero every larger constant, found in the file by its bytes."""
    from ai_edge_litert.interpreter import Interpreter

    path = place / "model.tflite"
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    raw = path.read_bytes()
    for detail in interpreter.get_tensor_details():
        try:
            content = interpreter.get_tensor(detail["index"]).tobytes()
        except ValueError:
            continue
        if len(content) > 500:
            raw = raw.replace(content, bytes(len(content)))
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("target", "spoil"),
    [
        ("onnxruntime-fp32", _spoil_onnx),
        ("onnxruntime-int8", _spoil_scales),
        ("openvino-fp32", _spoil_openvino),
        ("openvino-fp16", _spoil_openvino),
        ("openvino-int8", _spoil_openvino),
        ("tflite-fp32", _spoil_tflite),
        ("tflite-fp16", _spoil_tflite),
        ("tflite-int8", _spoil_tflite),
    ],
)
def test_a_broken_build_of_each_kind_is_refused(
    inputs: Inputs, tmp_path: Path, target: str, spoil: Callable[[Path], None]
) -> None:
    """Each runtime in each precision, by one of the recipes that are tried first."""
    backend, precision = backend_for(target)
    # 8-bit weights overflow on CPUs without VNNI, where ONNX Runtime's first recipe is not built.
    recipe = backend.recipes(precision, calibrated=True)[target == "onnxruntime-int8"]
    spec = msgspec.structs.replace(inputs.spec(target, tmp_path / target), recipe=recipe)
    report = build(spec, lambda _: None, Broken(backend, spoil))
    assert report.outcome is Outcome.REFUSED, report.reason
    assert "the budget is 0.01" in report.reason
    assert report.accuracy is not None
    assert report.accuracy.drop > 0.01
    assert [tried.outcome for tried in report.tries] == [Outcome.REFUSED]
    assert not (tmp_path / target / "manifest.json").exists()


def test_a_build_over_budget_is_tried_by_the_next_recipe(inputs: Inputs, tmp_path: Path) -> None:
    """The first INT8 build is spoiled, a later one passes, and both are on record."""
    spoiled: list[Path] = []

    def spoil_once(place: Path) -> None:
        if not spoiled:
            spoiled.append(place)
            _spoil_scales(place)

    backend, _ = backend_for("onnxruntime-int8")
    report = build(inputs.spec("onnxruntime-int8", tmp_path / "out"), lambda _: None, Broken(backend, spoil_once))
    assert report.outcome is Outcome.BUILT, report.reason
    # Recipes that overflow on this CPU are on record too, as failed.
    [refused] = [tried for tried in report.tries if tried.outcome is Outcome.REFUSED]
    assert "the budget is" in refused.detail
    assert report.tries[-1].outcome is Outcome.BUILT
    assert report.recipe == report.tries[-1].recipe


# --- targets for hardware that is not here ---------------------------------------------------------------------------------


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("target", "outcome", "reason"),
    [
        ("tensorrt-fp16-sm87", Outcome.UNSUPPORTED, "no builder of that kind here: tensorrt-fp16-sm87"),
        ("tensorrt-rtx-fp32", Outcome.CHECKED, "none was compared with the source and none is released"),
    ],
)
def test_tensorrt_checks_the_graph_and_says_why_nothing_is_released(
    inputs: Inputs, tmp_path: Path, target: str, outcome: Outcome, reason: str
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    report = build_isolated(inputs.spec(target, tmp_path / target), Limits())
    assert report.outcome is outcome
    if outcome is Outcome.CHECKED:
        assert report.toolchain["tensorrt-rtx"] == rtx.__version__
    assert reason in report.reason
    assert "the graph is fit for TensorRT (TensorRT-RTX" in report.reason
    assert not (tmp_path / target / "manifest.json").exists()


def test_without_data_the_report_says_that_accuracy_is_not_known(inputs: Inputs, tmp_path: Path) -> None:
    spec = BuildSpec(
        model="digits",
        version="1.0",
        target="onnxruntime-int8",
        source=str(inputs.source),
        out=str(tmp_path / "out"),
        work=str(inputs.out / "work"),
        measure_seconds=0.05,
    )
    report: BuildReport = build_isolated(spec, Limits())
    notes: Mapping[str, bool] = {
        "evaluation": any("no evaluation data: compared on 32 random inputs" in note for note in report.notes),
        "calibration": any("no calibration data" in note for note in report.notes),
    }
    assert all(notes.values()), report.notes
    assert report.accuracy is None
    # On CPUs without VNNI the first one overflows.
    assert report.recipe in {"dynamic, INT8 weights", "INT8 weights, computed in FP32"}


# --- signatures -----------------------------------------------------------------------------------------------------------


def _two_of_each(path: Path) -> None:
    """A cube of an image, whose layout no shape tells, beside a state; names as exporters like them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(3).standard_normal((4, 4, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["net/image:0", "kernel"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["out.cube"], name="sigmoid"),
        helper.make_node("Mul", ["state", "half"], ["scaled"], name="mul"),
        helper.make_node("ReduceMean", ["out.cube"], ["mean"], name="mean", axes=[1, 2, 3], keepdims=0),
        helper.make_node("Add", ["scaled", "mean"], ["next_state"], name="add"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two",
        [info("net/image:0", TensorProto.FLOAT, [1, 4, 4, 4]), info("state", TensorProto.FLOAT, [2, 1, 6])],
        [info("out.cube", TensorProto.FLOAT, [1, 4, 4, 4]), info("next_state", TensorProto.FLOAT, [2, 1, 6])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.array([0.5], np.float32), "half")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.mark.parametrize("target", ["onnxruntime-fp32", "openvino-fp32", "tflite-fp32", "tflite-int8"])
def test_names_and_layouts_stay_the_source_s(inputs: Inputs, tmp_path: Path, target: str) -> None:
    source = tmp_path / "two.onnx"
    _two_of_each(source)
    generator = np.random.default_rng(5)
    samples: dict[str, Any] = {
        "net/image:0": generator.random((40, 4, 4, 4), np.float32),
        "state": generator.random((40, 2, 1, 6), np.float32),
    }
    np.savez(tmp_path / "samples.npz", **samples)
    spec = BuildSpec(
        model="two",
        version="1",
        target=target,
        source=str(source),
        out=str(tmp_path / "out"),
        work=str(inputs.out / "work"),
        calibration=str(tmp_path / "samples.npz"),
        evaluation=str(tmp_path / "samples.npz"),
        measure_seconds=0.05,
    )
    report = build_isolated(spec, Limits())
    assert report.outcome is Outcome.BUILT, f"{report.reason} {report.tries} {report.log_tail}"
    assert set(report.parity) == {"out.cube", "next_state"}
    manifest = folder.read_manifest(tmp_path / "out")
    assert [(one.name, one.shape) for one in manifest.inputs] == [("net/image:0", (1, 4, 4, 4)), ("state", (2, 1, 6))]
    assert [(one.name, one.shape) for one in manifest.outputs] == [
        ("out.cube", (1, 4, 4, 4)),
        ("next_state", (2, 1, 6)),
    ]
