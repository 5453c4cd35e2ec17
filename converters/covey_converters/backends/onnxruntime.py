"""ONNX Runtime: the graph itself, cleaned up; INT8 as static QDQ with unsigned activations, or dynamic without calibration data.
Where neither answers as the source does, only the weights are INT8.

x86 CPUs without VNNI (AVX2 alone) add two products of unsigned activations and signed weights in 16 bits, which overflow: the same file
had accuracy 0.92 by exact arithmetic and 0.51 on such a CPU. Weights of 7 bits cannot overflow, unsigned ones are not added that way;
what overflows here is not built. Which CPU will run a build is not known, so what has 8-bit weights says so in its notes.

No graph optimised for this machine is ever shipped: ONNX Runtime's full optimisation writes nodes bound to the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from covey_contract.manifest import Runtime
from covey_converters import layers
from covey_converters.backend import Array, Built, Source, copy_into
from covey_converters.backends.onnx_graph import hold_in_float, opset, quantisable
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.onnx_trials import digest_of, trials
from covey_converters.backends.onnx_weights import SMALLEST, quantise_weights
from covey_converters.errors import RecipeError, UnsupportedError
from covey_converters.heads import onnx_head, onnx_operators
from covey_converters.samples import Samples
from covey_converters.sensitive import SAMPLES, sensitive

_ENTRY = "model.onnx"
_STATIC = "static QDQ, MinMax, unsigned activations"
_STATIC_NARROW = f"{_STATIC}, 7-bit weights"
_STATIC_UNSIGNED = f"{_STATIC}, unsigned weights"
_STATIC_FLOAT_HEAD = f"{_STATIC}, float head"
_STATIC_SENSITIVE = f"{_STATIC}, head and sensitive layers in float"
_STATIC_MEASURED = layers.recipes(_STATIC)
_STATIC_AVERAGE = f"{_STATIC}, averaged ranges"
_STATIC_WEIGHTED = f"{_STATIC}, only of layers with weights"
_DYNAMIC = "dynamic, INT8 weights"
_WEIGHTS = "INT8 weights, computed in FP32"
# The fast ones first; unsigned weights are exact everywhere and slow on CPUs without kernels for them.
_STATICS = (
    _STATIC, _STATIC_NARROW, _STATIC_FLOAT_HEAD, _STATIC_SENSITIVE, *_STATIC_MEASURED, _STATIC_AVERAGE, _STATIC_WEIGHTED,
    _STATIC_UNSIGNED,
)  # fmt: skip
_OVERFLOW_SAFE = frozenset({_STATIC_NARROW, _STATIC_UNSIGNED})
# Of an output's length: rounding at other places gives a few per mille, overflow tens of per cent.
_OVERFLOW = 0.08
_OVERFLOW_NOTE = (
    "INT8 weights of 8 bits may overflow on x86 CPUs without VNNI, if this build was not gated on one: the device's golden check "
    f"decides there; recipe {_STATIC_NARROW!r} cannot overflow"
)
_CALIBRATION_SAMPLES = 200
# The runtime that reads each opset.
_RUNTIME_FOR_OPSET = {
    **dict.fromkeys(range(7, 16), "1.10"),
    16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.23",
}  # fmt: skip
_HEADS = {"Conv", "Gemm", "MatMul"}


class OnnxRuntimeBackend:
    """`onnxruntime-fp32`, `onnxruntime-int8`."""

    runtime = Runtime.ONNXRUNTIME
    module = "onnxruntime"
    packages = ("onnxruntime", "onnx", "onnxslim", "numpy")

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        if precision == "fp32":
            return ("onnxslim", "as it came")
        if precision == "int8":
            return (*(_STATICS if calibrated else ()), _DYNAMIC, _WEIGHTS)
        raise UnsupportedError("ONNX Runtime on CPUs computes in FP32 or INT8; there is no onnxruntime-fp16 build")

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        del target
        if recipe == "onnxslim":
            copy_into(folder, source.start, _ENTRY)
        elif recipe == "as it came":
            _save_inlined(source.original, folder / _ENTRY)
        else:
            _quantise(source, recipe, calibration, folder / _ENTRY)
            if recipe in _STATICS and recipe not in _OVERFLOW_SAFE and calibration is not None:
                _refuse_overflow(folder / _ENTRY, calibration)
        return Built(
            folder=folder,
            files=(_ENTRY,),
            entry=_ENTRY,
            inputs=source.review.inputs,
            outputs=source.review.outputs,
            runtime_min=_RUNTIME_FOR_OPSET.get(opset(folder / _ENTRY)),
            notes=(_OVERFLOW_NOTE,) if recipe in _STATICS and recipe not in _OVERFLOW_SAFE else (),
        )

    def open(self, built: Built, *, threads: int, reference: bool = False) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(built.folder / built.entry, threads=threads, optimise=not reference)


class CalibrationReader:
    """ONNX Runtime's CalibrationDataReader, by its shape."""

    def __init__(self, samples: Samples) -> None:
        self._samples: Iterator[dict[str, Array]] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._samples, None)


def _quantise(source: Source, recipe: str, calibration: Samples | None, out: Path) -> None:
    import onnx
    from onnxruntime import quantization

    # It recommends a preparation step that onnxslim and the review have done.
    logging.getLogger().setLevel(logging.ERROR)
    model = quantisable(source)
    prepared = source.work / "to-quantise.onnx"
    onnx.save(model, str(prepared))
    try:
        if recipe == _WEIGHTS:
            if not quantise_weights(model):
                raise RecipeError(f"no weights of {SMALLEST} numbers or more")
            onnx.save(model, str(out))
            return
        if recipe == _DYNAMIC:
            quantization.quantize_dynamic(str(prepared), str(out), weight_type=quantization.QuantType.QInt8)
            return
        if calibration is None:
            raise RecipeError("static quantisation needs calibration data")
        chosen = calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES)
        reader: Any = CalibrationReader(chosen)
        ranges = source.work / f"ranges-{digest_of(model, chosen)}.json"
        quantization.quantize_static(
            str(prepared),
            str(out),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8 if recipe == _STATIC_UNSIGNED else quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=recipe == _STATIC_NARROW,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            op_types_to_quantize=sorted(_HEADS) if recipe == _STATIC_WEIGHTED else None,
            nodes_to_exclude=_kept(model, recipe, chosen, source.work),
            # The ranges of a few samples at a time are averaged, so that one odd sample does not widen them for all.
            extra_options={"CalibMovingAverage": True} if recipe == _STATIC_AVERAGE else {},
            # Found once for all recipes that want the same.
            calibration_cache_path=None if recipe in {_STATIC_AVERAGE, _STATIC_WEIGHTED} else ranges,
        )
        quantised = onnx.load(str(out))
        if hold_in_float(quantised):
            onnx.save(quantised, str(out))
    except RecipeError:
        raise
    except Exception as error:  # noqa: BLE001  # the quantiser raises anything, from AttributeError to RuntimeError
        raise RecipeError(f"ONNX Runtime's quantiser: {type(error).__name__}: {error}") from error


def _refuse_overflow(model: Path, calibration: Samples) -> None:
    """Raises `RecipeError` if this CPU's kernels overflow: unoptimised, the same file is computed in floating point, and answers alike."""
    fused, plain = (OnnxRuntimeSession(model, threads=1, optimise=optimise) for optimise in (True, False))
    for sample in calibration.spread(SAMPLES):
        exact = plain.run(sample)
        for name, answer in fused.run(sample).items():
            want = exact[name].astype(np.float64)
            apart = float(np.linalg.norm(answer.astype(np.float64) - want))
            if want.size and apart > _OVERFLOW * max(float(np.linalg.norm(want)), 1e-6):
                raise RecipeError(
                    f"8-bit weights overflow on this CPU (no VNNI): output {name!r} is not what the same file gives by exact arithmetic"
                )


def _kept(model: Any, recipe: str, calibration: Samples, work: Path) -> list[str]:
    """The nodes that stay in float."""
    if recipe == _STATIC_FLOAT_HEAD:
        if not (found := onnx_head(model)):
            raise RecipeError("the graph has no head apart from the rest")
        return found
    if recipe == _STATIC_SENSITIVE:
        return [*onnx_head(model), *_sensitive(model, calibration)]
    if recipe in _STATIC_MEASURED:
        kept = onnx_head(model)
        chosen = layers.in_float(trials(model, calibration, work), _STATIC_MEASURED[recipe], kept)
        return [*kept, *(operator.name for layer in chosen for operator in layer.operators)]
    return []


def _sensitive(model: Any, calibration: Samples) -> list[str]:
    import onnx

    operators = [operator for operator in onnx_operators(model) if operator.kind != "Constant"]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {output.name for output in watched.graph.output}
    names = [name for operator in operators for name in operator.outputs[:1] if name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = OnnxRuntimeSession(watched.SerializeToString(), threads=1, optimise=False)
    answers = [session.run(sample) for sample in calibration.spread(SAMPLES)]
    layers = (
        (operator.name, np.stack([answer[operator.outputs[0]] for answer in answers]))
        for operator in operators
        if len({answer[operator.outputs[0]].shape for answer in answers}) == 1
    )
    return sensitive(layers)


def _save_inlined(source: Path, out: Path) -> None:
    """A build is one file: weights that lay beside the source come inside."""
    import onnx

    onnx.save(onnx.load(str(source)), str(out))
