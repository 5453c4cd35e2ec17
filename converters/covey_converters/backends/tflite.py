"""TFLite: onnx2tf's direct flatbuffer path (in a toolchain environment of its own), then AI Edge Quantizer for INT8 and FP16.

onnx2tf turns image tensors to channels-last and may rename them. Which transposition it chose is found by shape and, where the
shape does not tell, by comparing answers with the source; callers keep the source's names and layout, and float inputs and
outputs also of an INT8 build.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from covey_contract.manifest import Runtime, TensorSpec
from covey_converters import layers
from covey_converters.backend import Array, Built, Source, copy_into
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.tflite_graph import costly_tensors, head_tensors, interpreter, plain
from covey_converters.errors import RecipeError, UnsupportedError
from covey_converters.samples import Samples, numpy_type, random_samples
from covey_converters.toolchain import TIMED_OUT, run_in

_ENTRY = "model.tflite"
_DIRECT = "onnx2tf, direct flatbuffer"
_HALF = "FP16 weights"
_STATIC = "static INT8, min/max ranges"
_STATIC_FLOAT_HEAD = "static INT8, min/max ranges, float head"
# x * sigmoid(x) is rounded three times where it is made of two operators; in float they cost next to nothing.
_STATIC_MEASURED = layers.recipes(f"{_STATIC}, products and sigmoids in float")
_DYNAMIC = "dynamic range, INT8 weights"
_WEIGHTS = "INT8 weights, computed in FP32"
_CALIBRATION_SAMPLES = 200
_CONVERT_SECONDS = 900.0
# Above this many open questions of layout the search would not end; real models have one to four.
_MAX_LAYOUTS = 64


class TfliteBackend:
    """`tflite-fp32`, `tflite-fp16`, `tflite-int8`."""

    runtime = Runtime.TFLITE
    module = "ai_edge_litert.interpreter"
    packages = ("ai-edge-litert", "ai-edge-quantizer", "onnx", "onnxslim", "numpy")

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        if precision == "fp32":
            return (_DIRECT,)
        if precision == "fp16":
            return (_HALF,)
        return (*((_STATIC, _STATIC_FLOAT_HEAD, *_STATIC_MEASURED) if calibrated else ()), _DYNAMIC, _WEIGHTS)

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        del target
        single = _flatbuffer(source)
        inputs, outputs = _layout(source, single)
        copy_into(folder, single, _ENTRY)
        if recipe != _DIRECT:
            path = folder / _ENTRY
            path.write_bytes(_quantised(source, single, recipe, inputs, calibration))
        return Built(
            folder=folder,
            files=(_ENTRY,),
            entry=_ENTRY,
            inputs=inputs,
            outputs=_outputs_by_name(folder / _ENTRY, outputs),
            steps=_steps(folder / _ENTRY),
        )

    def open(self, built: Built, *, threads: int, reference: bool = False) -> TfliteSession:
        return TfliteSession(built, threads=threads, reference=reference)


class TfliteSession:
    """A build in LiteRT on the CPU: XNNPACK's kernels, or the slow reference kernels."""

    def __init__(self, built: Built, *, threads: int, reference: bool = False) -> None:
        self._interpreter = interpreter(built.folder / built.entry, threads=threads, reference=reference)
        details = self._interpreter.get_input_details()
        self._shapes = {int(detail["index"]): tuple(detail["shape"]) for detail in details}
        self._dtypes = {int(detail["index"]): detail["dtype"] for detail in details}
        self._inputs = _bound(built.inputs, details)
        self._outputs = _bound(built.outputs, self._interpreter.get_output_details())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        moved = {
            index: inputs[spec.name].transpose(spec.permutation) if spec.permutation else inputs[spec.name]
            for spec, index in self._inputs
        }
        self._resize({index: array.shape for index, array in moved.items()})
        for index, array in moved.items():
            self._interpreter.set_tensor(index, np.ascontiguousarray(array, dtype=self._dtypes[index]))
        self._interpreter.invoke()
        return {spec.name: _from_build(self._interpreter.get_tensor(index), spec) for spec, index in self._outputs}

    def _resize(self, shapes: Mapping[int, tuple[int, ...]]) -> None:
        """A flatbuffer holds the shapes of one row; the interpreter is told when more come."""
        changed = {index: shape for index, shape in shapes.items() if shape != self._shapes[index]}
        for index, shape in changed.items():
            self._interpreter.resize_tensor_input(index, shape)
        if changed:
            self._interpreter.allocate_tensors()
            self._shapes.update(changed)


def _from_build(array: Array, spec: TensorSpec) -> Array:
    moved = array if spec.permutation is None else array.transpose(np.argsort(spec.permutation))
    return moved.astype(numpy_type(spec.datatype), copy=False)


def _bound(specs: Sequence[TensorSpec], details: Sequence[Mapping[str, Any]]) -> list[tuple[TensorSpec, int]]:
    indices = {str(detail["name"]): int(detail["index"]) for detail in details}
    return [(spec, indices[spec.build_name or spec.name]) for spec in specs]


# --- ONNX to a float flatbuffer -----------------------------------------------------------------------------------------


def _flatbuffer(source: Source) -> Path:
    """The float model by onnx2tf; made once, then kept for the next recipe or target."""
    if source.native is not None:
        return source.native
    folder = source.work / "tflite"
    model = folder / f"{source.graph.stem}_float32.tflite"
    if not model.exists():
        # Under another name until it is whole: a build that is killed must not leave half a model for the next one.
        partial = source.work / "tflite.partial"
        shutil.rmtree(partial, ignore_errors=True)
        arguments = json.dumps({"source": str(source.graph), "out": str(partial)})
        code, tail = run_in("onnx2tf", [arguments], seconds=_CONVERT_SECONDS)
        if code < 0 or code == TIMED_OUT:
            # It was killed or hung; that says nothing about the model.
            raise RecipeError(f"onnx2tf crashed (exit status {code}): {tail}")
        if code != 0 or not (partial / model.name).exists():
            raise UnsupportedError(f"onnx2tf cannot convert the graph: {tail}")
        partial.replace(folder)
    return model


def _layout(source: Source, model: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """How callers' tensors become the build's: names and transpositions, proven on random inputs where shapes do not tell."""
    loaded = interpreter(model, threads=1)
    review = source.review
    inputs = _candidates(review.inputs, loaded.get_input_details())
    outputs = _candidates(review.outputs, loaded.get_output_details())
    if sum(map(len, (*inputs, *outputs))) == len(inputs) + len(outputs):
        return tuple(choices[0] for choices in inputs), tuple(choices[0] for choices in outputs)
    samples = random_samples(review.inputs, 2, seed=1)
    reference = OnnxRuntimeSession(source.original, threads=1)
    wanted = [reference.run(sample) for sample in samples]
    best: tuple[float, tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None
    for chosen in itertools.islice(itertools.product(*inputs, *outputs), _MAX_LAYOUTS):
        specs = chosen[: len(inputs)], chosen[len(inputs) :]
        built = Built(folder=model.parent, files=(), entry=model.name, inputs=specs[0], outputs=specs[1])
        session = TfliteSession(built, threads=1)
        error = max(_distance(want, session.run(sample)) for want, sample in zip(wanted, samples, strict=True))
        if best is None or error < best[0]:
            best = error, *specs
    if best is None:
        raise UnsupportedError("no layout of the TFLite model's tensors fits the source's")
    return best[1], best[2]


def _distance(wanted: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    if any(wanted[name].shape != got[name].shape for name in wanted):
        return float("inf")
    return max(float(np.abs(wanted[name].astype(float) - got[name].astype(float)).max(initial=0.0)) for name in wanted)


def _candidates(specs: Sequence[TensorSpec], details: Sequence[Mapping[str, Any]]) -> list[list[TensorSpec]]:
    """For each of the source's tensors, the ways in which the build may hold it."""
    if len(specs) != len(details):
        raise UnsupportedError(f"onnx2tf left {len(details)} tensors where the source has {len(specs)}")
    by_name = {plain(str(detail["name"])): detail for detail in details}
    found: list[list[TensorSpec]] = []
    for position, spec in enumerate(specs):
        # onnx2tf replaces characters that TensorFlow does not allow in names, and keeps the order.
        detail = by_name.get(plain(spec.name), details[position])
        choices = [
            msgspec.structs.replace(spec, build_name=str(detail["name"]), permutation=permutation)
            for permutation in _transpositions(len(spec.shape))
            if _fits(spec.shape, permutation, [int(size) for size in detail["shape"]])
        ]
        if not choices:
            raise UnsupportedError(
                f"tensor {spec.name!r} of shape {list(spec.shape)} became {[int(size) for size in detail['shape']]} in TFLite"
            )
        found.append(choices)
    return found


def _transpositions(rank: int) -> tuple[tuple[int, ...] | None, ...]:
    """As it is, or channels last."""
    return (None,) if rank < 3 else (None, (0, *range(2, rank), 1))


def _fits(shape: Sequence[int], permutation: tuple[int, ...] | None, build: Sequence[int]) -> bool:
    moved = [shape[axis] for axis in permutation] if permutation else list(shape)
    return len(moved) == len(build) and all(a == -1 or a == b for a, b in zip(moved, build, strict=True))


# --- INT8 and FP16 ---------------------------------------------------------------------------------------------------------------


def _quantised(
    source: Source, model: Path, recipe: str, inputs: Sequence[TensorSpec], calibration: Samples | None
) -> bytes:
    from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    every, operation = ".*", qtyping.TFLOperationName
    algorithm = algorithm_manager.AlgorithmName
    manager = recipe_manager.RecipeManager()
    if recipe == _DYNAMIC:
        manager.add_dynamic_config(every, operation.ALL_SUPPORTED, num_bits=8)
    elif recipe == _WEIGHTS:
        manager.add_weight_only_config(every, operation.ALL_SUPPORTED, num_bits=8)
    elif recipe == _HALF:
        # Not onnx2tf's own FP16 model: that one also computes in FP16, which few kernels can.
        halved = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        manager.add_quantization_config(every, operation.ALL_SUPPORTED, halved, algorithm.FLOAT_CASTING)
    else:
        manager.add_static_config(every, operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        for edge in (operation.INPUT, operation.OUTPUT):
            manager.add_quantization_config(every, edge, algorithm_key=algorithm.NO_QUANTIZE)
        for kind in (operation.MUL, operation.LOGISTIC) if recipe in _STATIC_MEASURED else ():
            manager.add_quantization_config(every, kind, algorithm_key=algorithm.NO_QUANTIZE)
        for name in _in_float(source, model, recipe, calibration):
            manager.add_quantization_config(
                f"^{re.escape(name)}(;|$)", operation.ALL_SUPPORTED, algorithm_key=algorithm.NO_QUANTIZE
            )
    try:
        quantiser = quantizer.Quantizer(str(model), manager.get_quantization_recipe())
        ranges = None
        if recipe not in {_DYNAMIC, _WEIGHTS, _HALF}:
            if calibration is None:
                raise RecipeError("static quantisation needs calibration data")
            key, feeds = _feeds(model, inputs, calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES))
            with warnings.catch_warnings():
                # LiteRT warns of the memory that keeping every tensor takes; that is what calibration is.
                warnings.simplefilter("ignore")
                # The quantiser's own moving average of ranges costs several points of accuracy: take the true minimum and maximum.
                ranged = calibrator.Calibrator(
                    model.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update
                )
                ranged.calibrate({key: feeds}, manager)
            ranges = ranged.get_model_qsvs()
        return bytes(quantiser.quantize(ranges, enable_progress_report=False).quantized_model)
    except RecipeError:
        raise
    except Exception as error:  # noqa: BLE001  # the quantiser raises anything for operators it does not know
        raise RecipeError(f"AI Edge Quantizer: {type(error).__name__}: {str(error).splitlines()[0][:300]}") from error


def _in_float(source: Source, model: Path, recipe: str, calibration: Samples | None) -> list[str]:
    """What the operators give that stay in float."""
    if recipe == _STATIC_FLOAT_HEAD:
        return head_tensors(model)
    if recipe in _STATIC_MEASURED and calibration is not None:
        chosen = calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES)
        return costly_tensors(source, model, _STATIC_MEASURED[recipe], chosen)
    return []


def _feeds(
    model: Path, inputs: Sequence[TensorSpec], calibration: Samples
) -> tuple[str | None, list[dict[str, Array]]]:
    """The model's signature, and the calibration samples by that signature's names in the build's layout."""
    loaded = interpreter(model, threads=1)
    signatures = loaded.get_signature_list()
    key = next(iter(signatures), None)
    names = {str(detail["name"]): str(detail["name"]) for detail in loaded.get_input_details()}
    if key is not None:
        details = loaded.get_signature_runner(key).get_input_details()
        names = {str(detail["name"]): name for name, detail in details.items()}
    feeds = [
        {
            names[spec.build_name or spec.name]: np.ascontiguousarray(
                sample[spec.name].transpose(spec.permutation) if spec.permutation else sample[spec.name]
            )
            for spec in inputs
        }
        for sample in calibration
    ]
    return key, feeds


def _outputs_by_name(model: Path, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Quantising puts a tensor of another name behind each output; their order stays."""
    details = interpreter(model, threads=1).get_output_details()
    present = {str(detail["name"]) for detail in details}
    signature = interpreter(model, threads=1).get_signature_list()
    if all((spec.build_name or spec.name) in present for spec in outputs):
        return tuple(outputs)
    renamed: list[TensorSpec] = []
    runner = interpreter(model, threads=1).get_signature_runner(next(iter(signature))) if signature else None
    by_signature = {name: str(d["name"]) for name, d in runner.get_output_details().items()} if runner else {}
    for spec, detail in zip(outputs, details, strict=True):
        old = spec.build_name or spec.name
        new = by_signature.get(old) or by_signature.get(spec.name) or str(detail["name"])
        renamed.append(msgspec.structs.replace(spec, build_name=new))
    return tuple(renamed)


def _steps(model: Path) -> dict[str, float]:
    """The quantisation step of each output that comes out of a dequantisation, by the output's name."""
    loaded = interpreter(model, threads=1, reference=True)
    scales = {detail["index"]: float(detail["quantization"][0]) for detail in loaded.get_tensor_details()}
    names = {int(detail["index"]): str(detail["name"]) for detail in loaded.get_output_details()}
    return {
        names[found["outputs"][0]]: scales[found["inputs"][0]]
        for found in loaded._get_ops_details()  # noqa: SLF001  # as above
        if found["op_name"] == "DEQUANTIZE" and found["outputs"][0] in names and scales.get(found["inputs"][0], 0.0) > 0
    }
