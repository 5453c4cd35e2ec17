"""TensorRT: an engine for one kind of NVIDIA GPU, built and verified on a machine that has that GPU.

An engine loads only with the exact TensorRT version and GPU it was built for, so the manifest pins both. How TensorRT 8, 10 and 11 are
asked for one is `tensorrt_engine`'s; the graphs that they take are `tensorrt_graphs`'s. Kernel timings measured by one build are kept
for the next, and an engine that was built from the same before is taken again.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from platform import machine
from typing import Any

import numpy as np

from covey_contract.manifest import Runtime, check_target
from covey_converters.backend import Array, Built, Source
from covey_converters.backends import tensorrt_rtx
from covey_converters.backends.tensorrt_engine import (
    EnginePlan,
    Platform,
    Profile,
    engine_key,
    l4t_release,
    plan,
    profile,
    serialised,
    timing_cache,
)
from covey_converters.backends.tensorrt_graphs import explicit_qdq, typed_half
from covey_converters.errors import RecipeError, UnsupportedError
from covey_converters.samples import Samples

_ENTRY = "model.engine"


class TensorRtBackend:
    """`tensorrt-fp32-smNN`, `tensorrt-fp16-smNN`, `tensorrt-int8-smNN`."""

    runtime = Runtime.TENSORRT
    module = "tensorrt"
    packages = ("tensorrt", "onnx", "onnxslim", "onnxruntime")

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        if precision == "int8" and not calibrated:
            raise UnsupportedError("tensorrt-int8 needs calibration data (--calibration FILE.npz)")
        return (f"TensorRT engine, {precision}",)

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        del recipe
        tensorrt = _tensorrt(source, target)
        capability = _compute_capability()
        wanted = target.rpartition("-sm")[2] if "-sm" in target else capability.replace(".", "")
        if wanted != capability.replace(".", ""):
            raise UnsupportedError(f"no builder of that kind: this machine's GPU is SM {capability}, not {wanted}")
        version = str(tensorrt.__version__)
        _, precision = check_target(target)
        how, platform = plan(int(version.split(".")[0]), precision), Platform(capability, version, l4t_release())
        graph = _graph(source, how.typed, calibration)
        ranges = profile({spec.name: spec.shape for spec in source.review.inputs}, source.max_batch)
        shapes = {
            spec.name: (source.max_batch, *spec.shape[1:]) if ranges else spec.shape for spec in source.review.inputs
        }
        key = engine_key(_digest(graph), precision, shapes, platform)
        cache = timing_cache(source.work.parent, platform)
        (folder / _ENTRY).write_bytes(_kept(source.work, key, lambda: _engine(tensorrt, how, graph, cache, ranges)))
        return Built(
            folder=folder,
            files=(_ENTRY,),
            entry=_ENTRY,
            inputs=source.review.inputs,
            outputs=source.review.outputs,
            runtime_exact=version,
            architecture=machine(),
            compute_capability=capability,
        )

    def open(self, built: Built, *, threads: int, reference: bool = False) -> TensorRtSession:
        del threads, reference
        return TensorRtSession(built)


class TensorRtSession:
    """An engine on the GPU, one request at a time; tensors cross by plain copies."""

    def __init__(self, built: Built) -> None:
        import tensorrt

        self._cuda = _cudart()
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine((built.folder / built.entry).read_bytes())
        if self._engine is None:
            raise RecipeError("TensorRT does not load the engine that it has just built")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._types = {name: np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._inputs = [spec.name for spec in built.inputs]
        self._outputs = [name for name in names if name not in self._inputs]
        self._devices: dict[str, tuple[int, int]] = {}  # pointer and bytes

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name in self._inputs:
            host = np.ascontiguousarray(inputs[name], self._types[name])
            if not self._context.set_input_shape(name, host.shape):
                raise RecipeError(f"the engine does not take shape {list(host.shape)} for input {name!r}")
            self._copy(self._bound(name, host.nbytes), host.ctypes.data, host.nbytes, to_device=True)
        answers: dict[str, Array] = {
            name: np.empty(tuple(self._context.get_tensor_shape(name)), self._types[name]) for name in self._outputs
        }
        pointers = {name: self._bound(name, answer.nbytes) for name, answer in answers.items()}
        # Stream 0 orders the copies around the execution.
        if not self._context.execute_async_v3(0):
            raise RecipeError("TensorRT could not run the engine")
        _checked(self._cuda.cudaDeviceSynchronize())
        for name, answer in answers.items():
            self._copy(answer.ctypes.data, pointers[name], answer.nbytes, to_device=False)
        return answers

    def _bound(self, name: str, size: int) -> int:
        """Memory on the device for a tensor, kept until a larger one comes."""
        pointer, held = self._devices.get(name, (0, 0))
        if held < size or not pointer:
            if pointer:
                _checked(self._cuda.cudaFree(ctypes.c_void_p(pointer)))
            found = ctypes.c_void_p()
            _checked(self._cuda.cudaMalloc(ctypes.byref(found), ctypes.c_size_t(max(size, 1))))
            pointer = int(found.value or 0)
            self._devices[name] = pointer, size
        self._context.set_tensor_address(name, pointer)
        return pointer

    def _copy(self, to: int, source: int, size: int, *, to_device: bool) -> None:
        kind = 1 if to_device else 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
        _checked(self._cuda.cudaMemcpy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind))


def _tensorrt(source: Source, target: str) -> Any:
    """The module, if this machine can build engines. If not, the graph is at least checked, and the reason says so."""
    try:
        import tensorrt

        if tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR)) is not None:
            return tensorrt
    except (ImportError, AttributeError, RuntimeError, TypeError):
        # Not installed, or the registry's stub, or no driver: not a builder of that kind.
        pass
    raise UnsupportedError(
        f"no builder of that kind here: {target} is built on a machine with that GPU; {tensorrt_rtx.check(source.graph)}"
    )


def _graph(source: Source, typed: str, calibration: Samples | None) -> Path:
    if typed == "int8":
        return explicit_qdq(source, calibration)
    return typed_half(source) if typed == "fp16" else source.start


def _engine(tensorrt: Any, how: EnginePlan, graph: Path, cache: Path, ranges: Profile) -> bytes:
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    engine = serialised(
        tensorrt,
        logger,
        how,
        lambda network: tensorrt_rtx.parse(tensorrt, network, logger, graph),
        lambda _: None,
        cache,
        ranges,
    )
    if engine is None:
        raise RecipeError("TensorRT could not build an engine; the log says why")
    return engine


def _kept(folder: Path, key: str, make: Callable[[], bytes]) -> bytes:
    """An engine that was built before from the same, or a new one: building takes minutes on a Jetson."""
    path = folder / f"tensorrt-{key}.engine"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(make())
        partial.replace(path)
    return path.read_bytes()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cudart() -> Any:
    for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UnsupportedError("no CUDA runtime (libcudart.so) on this machine")


def _checked(status: int) -> None:
    if status != 0:
        raise RecipeError(f"CUDA error {status}")


def _compute_capability() -> str:
    cuda = _cudart()
    major, minor = ctypes.c_int(), ctypes.c_int()
    # cudaDevAttrComputeCapabilityMajor, …Minor
    _checked(cuda.cudaDeviceGetAttribute(ctypes.byref(major), 75, 0))
    _checked(cuda.cudaDeviceGetAttribute(ctypes.byref(minor), 76, 0))
    return f"{major.value}.{minor.value}"
