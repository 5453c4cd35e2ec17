"""The backends, by the runtime they build for. A new one is one file here and one line below."""

from __future__ import annotations

from covey_contract.manifest import Runtime, check_target
from covey_converters.backend import Backend
from covey_converters.backends.onnxruntime import OnnxRuntimeBackend
from covey_converters.backends.openvino import OpenVinoBackend
from covey_converters.backends.tensorrt import TensorRtBackend
from covey_converters.backends.tensorrt_rtx import TensorRtRtxBackend
from covey_converters.backends.tflite import TfliteBackend

BACKENDS: dict[Runtime, Backend] = {
    Runtime.ONNXRUNTIME: OnnxRuntimeBackend(),
    Runtime.OPENVINO: OpenVinoBackend(),
    Runtime.TFLITE: TfliteBackend(),
    Runtime.TENSORRT: TensorRtBackend(),
    Runtime.TENSORRT_RTX: TensorRtRtxBackend(),
}

# What any x86-64 or arm64 machine can build and verify.
CPU_TARGETS = (
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "openvino-fp32",
    "openvino-fp16",
    "openvino-int8",
    "tflite-fp32",
    "tflite-fp16",
    "tflite-int8",
)


def backend_for(target: str) -> tuple[Backend, str]:
    """The backend of a target's name, and the precision in it; raises the contract's `DecodeError` if it is no target."""
    runtime, precision = check_target(target)
    return BACKENDS[runtime], precision
