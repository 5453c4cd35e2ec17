"""OpenVINO: converted to its IR; FP16 as compressed weights, INT8 by NNCF post-training quantisation.

The precision that a plugin computes in is part of the build: left to itself, OpenVINO takes bf16 or fp16 on hardware that has it,
and answers differ from device to device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covey_contract.manifest import Runtime
from covey_converters import layers
from covey_converters.backend import Array, Built, Source
from covey_converters.backends.onnx_graph import quantisable
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.onnx_trials import trials
from covey_converters.columns import worst_column
from covey_converters.errors import RecipeError, UnsupportedError
from covey_converters.heads import Operator, head, onnx_head
from covey_converters.samples import Samples

_ENTRY = "model.xml"
_WEIGHTS = "model.bin"
_PTQ = "NNCF post-training, mixed preset"
_PTQ_NARROW = "NNCF post-training, 7-bit weights"
_PTQ_SLOW_BIAS = "NNCF post-training, full bias correction"
_PTQ_FLOAT_HEAD = "NNCF post-training, float head"
_PTQ_RANGES = "NNCF post-training, min/max ranges, biases as they were"
_PTQ_MEASURED = layers.recipes(_PTQ_RANGES)
_PTQ_RESTORED = "NNCF post-training, accuracy control, two rounds"
_PTQ_TRANSFORMER = "NNCF post-training, for transformers"
_WEIGHTS_ONLY = "NNCF, INT8 weights, computed in FP32"
_HALF = "convert, FP16 weights"
_HALF_WEIGHTS = "convert, FP16 weights, computed in FP32"
_CALIBRATION_SAMPLES = 200
# Of accuracy control: how many samples it looks at, and the error of a column that it lets be.
_RESTORER_SAMPLES = 20
_RESTORER_DROP = 0.05
_HINT = "INFERENCE_PRECISION_HINT"
_HEADS = {"Convolution", "GroupConvolution", "MatMul"}


class OpenVinoBackend:
    """`openvino-fp32`, `openvino-fp16`, `openvino-int8`."""

    runtime = Runtime.OPENVINO
    module = "openvino"
    packages = ("openvino", "nncf", "onnx", "onnxslim", "numpy")

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        if precision == "fp32":
            return ("convert",)
        if precision == "fp16":
            return (_HALF, _HALF_WEIGHTS)
        if not calibrated:
            raise UnsupportedError(
                "openvino-int8 needs calibration data (--calibration FILE.npz): ranges cannot be guessed"
            )
        # Full bias correction and accuracy control take minutes where the others take seconds.
        return (
            _PTQ, _PTQ_FLOAT_HEAD, _PTQ_TRANSFORMER, _PTQ_RANGES, *_PTQ_MEASURED, _PTQ_NARROW, _PTQ_SLOW_BIAS, _PTQ_RESTORED,
            _WEIGHTS_ONLY,
        )  # fmt: skip

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        half = target.startswith("openvino-fp16")
        openvino = _openvino()
        try:
            model = openvino.convert_model(str(source.start))
            model.reshape({spec.name: _dimensions(openvino, spec.shape, source) for spec in source.review.inputs})
        except Exception as error:  # noqa: BLE001  # OpenVINO raises RuntimeError subclasses and its converter's own Error
            raise UnsupportedError(f"OpenVINO cannot convert the graph: {_brief(error)}") from error
        if recipe == _WEIGHTS_ONLY:
            model = _with_small_weights(model)
        elif recipe.startswith("NNCF"):
            model = _quantised(model, source, recipe, calibration)
        _name_by_order(model)
        openvino.save_model(model, str(folder / _ENTRY), compress_to_fp16=half)
        return Built(
            folder=folder,
            files=(_ENTRY, _WEIGHTS),
            entry=_ENTRY,
            inputs=source.review.inputs,
            outputs=source.review.outputs,
            options={_HINT: "f16" if recipe == _HALF else "f32"},
        )

    def open(self, built: Built, *, threads: int, reference: bool = False) -> OpenVinoSession:
        return OpenVinoSession(built, threads=threads, mapped=not reference)


class OpenVinoSession:
    """A build on OpenVINO's CPU plugin."""

    def __init__(self, built: Built, *, threads: int, mapped: bool = True) -> None:
        core = _openvino().Core()
        options = {**built.options, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_MMAP": mapped}
        compiled = core.compile_model(str(built.folder / built.entry), "CPU", options)
        self._request = compiled.create_infer_request()
        self._outputs = {spec.name: _output_index(compiled, spec.build_name or spec.name) for spec in built.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._request.infer({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        return {name: np.array(self._request.get_output_tensor(index).data) for name, index in self._outputs.items()}


def _dimensions(openvino: Any, shape: Sequence[int], source: Source) -> list[Any]:
    """Of an input; the first one from 1 to as many rows as may come. Bounded, so that the plugin can plan its memory."""
    return [openvino.Dimension(1, source.max_batch) if source.opened else shape[0], *shape[1:]] if shape else []


def _output_index(compiled: Any, name: str) -> int:
    for index, output in enumerate(compiled.outputs):
        if name in output.names:
            return index
    raise RecipeError(f"OpenVINO lost the name of output {name!r}")


def _quantised(model: Any, source: Source, recipe: str, calibration: Samples | None) -> Any:
    if calibration is None:
        raise RecipeError("post-training quantisation needs calibration data")
    import nncf

    nncf.set_log_level("ERROR")
    chosen = calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES)
    ignored = _ignored(model, source, recipe, chosen)
    if recipe == _PTQ_TRANSFORMER and "Softmax" not in source.review.operators:
        raise RecipeError("the graph has no attention")
    # Sums of two products overflow 16 bits on CPUs without VNNI, unless weights have 7 bits; by default the first layer's have.
    overflow = nncf.OverflowFix.ENABLE if recipe == _PTQ_NARROW else nncf.OverflowFix.FIRST_LAYER
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=overflow)
    if recipe == _PTQ_RANGES or recipe in _PTQ_MEASURED:
        # A detector's scores came out too high by the mean of the samples' ranges, and by biases corrected for the mean of all anchors.
        advanced.activations_range_estimator_params = _min_max()
        advanced.disable_bias_correction = True
    try:
        if recipe == _PTQ_RESTORED:
            return _restored(model, source, calibration)
        return nncf.quantize(
            model,
            nncf.Dataset(list(chosen)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(chosen),
            model_type=nncf.ModelType.TRANSFORMER if recipe == _PTQ_TRANSFORMER else None,
            fast_bias_correction=recipe != _PTQ_SLOW_BIAS,
            advanced_parameters=advanced,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False) if ignored else None,
        )
    except Exception as error:  # noqa: BLE001  # NNCF raises its own kinds and OpenVINO's
        raise RecipeError(f"NNCF: {_brief(error)} ({source.review.nodes} nodes)") from error


def _min_max() -> Any:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet.MINMAX


def _ignored(model: Any, source: Source, recipe: str, calibration: Samples) -> list[str]:
    """The names of the operations that stay in float."""
    if recipe == _PTQ_FLOAT_HEAD:
        if not (found := _head(model)):
            raise RecipeError("the graph has no head apart from the rest")
        return found
    if recipe not in _PTQ_MEASURED:
        return []
    graph = quantisable(source)
    chosen = layers.in_float(trials(graph, calibration, source.work), _PTQ_MEASURED[recipe], onnx_head(graph))
    return [*_head(model), *_same(model, {tensor for layer in chosen for tensor in layer.outputs})]


def _same(model: Any, given: Collection[str]) -> list[str]:
    """The operations of the layers that give these tensors of the source's, whose names OpenVINO's converter keeps."""
    names = {
        node.get_friendly_name(): {name for port in node.outputs() for name in port.get_names()}
        for node in model.get_ordered_ops()
    }
    same = [
        layer
        for layer in layers.layers(_operators(model), _HEADS)
        if any(names[operator.name] & set(given) for operator in layer.operators)
    ]
    if given and not same:
        raise RecipeError("OpenVINO left none of the names of the layers that would stay in float")
    return [operator.name for layer in same for operator in layer.operators if operator.kind != "Result"]


def _with_small_weights(model: Any) -> Any:
    import nncf

    nncf.set_log_level("ERROR")
    try:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    except Exception as error:  # noqa: BLE001  # NNCF raises its own kinds and OpenVINO's
        raise RecipeError(f"NNCF: {_brief(error)}") from error


def _name_by_order(model: Any) -> None:
    """OpenVINO numbers what it makes up itself by a counter of the process; by position the file is the same every time."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_made_{index}")


def _head(model: Any) -> list[str]:
    """The names of the head's operations with weights or arithmetic, in OpenVINO's graph."""
    outputs = [_tensor(result.input(0).get_source_output()) for result in model.get_results()]
    found = head(_operators(model), outputs, _HEADS)
    return [operator.name for operator in found if operator.kind not in {"Constant", "Parameter", "Result"}]


def _operators(model: Any) -> list[Operator]:
    return [
        Operator(
            name=node.get_friendly_name(),
            kind=node.get_type_name(),
            inputs=tuple(_tensor(port.get_source_output()) for port in node.inputs()),
            outputs=tuple(_tensor(port) for port in node.outputs()),
        )
        for node in model.get_ordered_ops()
    ]


def _tensor(port: Any) -> str:
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _restored(model: Any, source: Source, calibration: Samples) -> Any:
    """NNCF's accuracy control, which gives the layers back to float that cost most. Bounded: unbounded it did not end on real models.
    What it controls is the worst column's error against the float answers; the gate judges the result by the task's metric."""
    import nncf

    chosen = calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES)
    checked = chosen.spread(_RESTORER_SAMPLES)
    session = OnnxRuntimeSession(source.graph, threads=1)
    wanted = [session.run(sample) for sample in checked]

    def kept(compiled: Any, items: Any) -> tuple[float, None]:
        """1 - the worst column's error. `items` are the numbers of samples."""
        numbers = list(items)
        samples = [{name: array[number] for name, array in checked.arrays.items()} for number in numbers]
        got = [compiled(sample) for sample in samples]
        errors = [0.0]
        for position, name in enumerate(wanted[0]):
            a = np.stack([wanted[number][name] for number in numbers])
            b = np.stack([np.array(answer[position]) for answer in got])
            found = worst_column(a, b) if a.shape == b.shape else None
            errors.append(found.error if found else 0.0)
        return 1 - max(errors), None

    return nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(list(chosen)),
        nncf.Dataset(list(range(len(checked)))),
        validation_fn=kept,
        max_drop=_RESTORER_DROP,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(chosen),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=2, ranking_subset_size=_RESTORER_SAMPLES
        ),
    )


def _openvino() -> Any:
    # openvino-telemetry is a hard dependency; it is off on machines that say they are CI.
    os.environ["CI"] = "true"
    import openvino

    return openvino


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
