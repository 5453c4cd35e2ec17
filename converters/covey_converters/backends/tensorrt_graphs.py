"""Graphs as TensorRT takes them: typed FP16, and INT8 as explicit quantise/dequantise pairs (QDQ).

TensorRT 11 and TensorRT-RTX are strongly typed: a tensor has the type that the graph says. TensorRT 8 and 10 take the same INT8 graphs,
and get FP16 by a builder flag.
"""

from __future__ import annotations

from pathlib import Path

from covey_converters.backend import Source
from covey_converters.backends.onnxruntime import CalibrationReader
from covey_converters.errors import RecipeError
from covey_converters.samples import Samples

_CALIBRATION_SAMPLES = 200


def typed_half(source: Source) -> Path:
    """The graph in FP16, with inputs and outputs as they were. Made by ONNX Runtime's converter, which leaves operators in FP32 that
    FP16 does not bear."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    out = source.work / "tensorrt-fp16.onnx"
    try:
        onnx.save(convert_float_to_float16(onnx.load(str(source.start)), keep_io_types=True), str(out))
    except Exception as error:  # noqa: BLE001  # the converter raises ValueError and what protobuf raises
        raise RecipeError(f"the graph cannot be typed FP16: {' '.join(str(error).split())[:300]}") from error
    return out


def explicit_qdq(source: Source, calibration: Samples | None) -> Path:
    """QDQ as TensorRT takes it: symmetric, per channel. ONNX Runtime's default form, with a quantised bias, is refused by its parser."""
    from onnxruntime import quantization

    if calibration is None:
        raise RecipeError("explicit QDQ needs calibration data")
    out = source.work / "tensorrt-qdq.onnx"
    try:
        quantization.quantize_static(
            str(source.start),
            str(out),
            CalibrationReader(calibration.affordable(source.review.activations, _CALIBRATION_SAMPLES)),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "DedicatedQDQPair": True,
                "AddQDQPairToWeight": True,
                "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul", "Add"],
            },
        )
    except Exception as error:  # noqa: BLE001  # the quantiser raises anything, from AttributeError to RuntimeError
        raise RecipeError(f"ONNX Runtime's quantiser: {type(error).__name__}: {str(error)[:300]}") from error
    return out
