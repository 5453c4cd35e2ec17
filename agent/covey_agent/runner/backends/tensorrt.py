"""TensorRT 8.5 to 10 and TensorRT-RTX: a serialized engine, executed by `execute_async_v3`.

Device buffers come from the CUDA runtime by ctypes, so that a device needs no package beside the TensorRT that its system ships.
Buffers are kept between calls and grow to the largest tensor seen.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covey_agent.runner.backends import Model
from covey_agent.runner.errors import LoadError
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest, Runtime
from covey_contract.reasons import Reason

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
HOST_TO_DEVICE = 1
DEVICE_TO_HOST = 2


class CudaError(Exception):
    """A call into the CUDA runtime failed."""


class Cuda:
    """The few calls of the CUDA runtime that are needed here."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def _check(self, what: str, code: int) -> None:
        if code:
            text = self._library.cudaGetErrorString(code)
            raise CudaError(f"{what}: {text.decode() if text else code}")

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self._check("cudaStreamCreate", self._library.cudaStreamCreate(ctypes.byref(stream)))
        return stream.value or 0

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self._check("cudaMalloc", self._library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        self._check("cudaFree", self._library.cudaFree(ctypes.c_void_p(pointer)))

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        code = self._library.cudaMemcpyAsync(
            ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, ctypes.c_void_p(stream)
        )
        self._check("cudaMemcpyAsync", code)

    def synchronize(self, stream: int) -> None:
        self._check("cudaStreamSynchronize", self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))


def open_cuda() -> Cuda:
    for name in LIBRARIES:
        try:
            return Cuda(ctypes.CDLL(name))
        except OSError:
            continue
    raise LoadError(Reason.NO_RUNTIME, f"the CUDA runtime is not installed (looked for {', '.join(LIBRARIES)})")


class TensorRtModel:
    """`trt` is the imported TensorRT module: `tensorrt` and `tensorrt_rtx` share their API as far as it is used here."""

    def __init__(self, trt: Any, engine: Any, cuda: Cuda) -> None:
        self._engine = engine
        self._context = engine.create_execution_context()
        self._cuda = cuda
        self._stream = cuda.stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> (device pointer, bytes)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        held = []  # the copies run asynchronously: their sources must outlive them
        for name in self._inputs:
            array = np.ascontiguousarray(inputs[name], dtype=self._types[name])
            held.append(array)
            if not self._context.set_input_shape(name, array.shape):
                raise ValueError(f"the engine does not take shape {array.shape} for input {name!r}")
            pointer = self._bind(name, array.nbytes)
            self._cuda.copy(pointer, array.ctypes.data, array.nbytes, HOST_TO_DEVICE, self._stream)
        outputs = {
            name: np.empty(tuple(self._context.get_tensor_shape(name)), self._types[name]) for name in self._outputs
        }
        for name, array in outputs.items():
            self._bind(name, array.nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise CudaError("the engine refused to run")
        for name, array in outputs.items():
            self._cuda.copy(array.ctypes.data, self._buffers[name][0], array.nbytes, DEVICE_TO_HOST, self._stream)
        self._cuda.synchronize(self._stream)
        return outputs

    def _bind(self, name: str, size: int) -> int:
        pointer, held = self._buffers.get(name, (0, 0))
        if held < size or not pointer:
            if pointer:
                self._cuda.free(pointer)
            pointer = self._cuda.allocate(max(size, 1))
            self._buffers[name] = (pointer, size)
        self._context.set_tensor_address(name, pointer)
        return pointer


def load(folder: Path, manifest: Manifest, threads: int) -> Model:  # noqa: ARG001  # the work is not done on the CPU
    name = "tensorrt_rtx" if manifest.runtime is Runtime.TENSORRT_RTX else "tensorrt"
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise LoadError(Reason.NO_RUNTIME, f"{name} is not usable here: {error}") from error
    if not hasattr(trt.IExecutionContext, "execute_async_v3"):
        raise LoadError(Reason.NO_RUNTIME, f"TensorRT {trt.__version__} is too old; 8.5 is the oldest that works")
    cuda = open_cuda()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine((folder / manifest.entry).read_bytes())
    if engine is None:
        raise LoadError(
            Reason.LOAD_FAILED,
            f"TensorRT {trt.__version__} does not take this engine; engines match one TensorRT version, platform and GPU",
        )
    return TensorRtModel(trt, engine, cuda)
