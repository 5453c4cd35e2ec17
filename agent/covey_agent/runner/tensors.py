"""Between a caller's tensors and a build's: names, layout and element types, both ways.

Callers see the source model's tensors (`TensorSpec`); the build may have renamed, transposed or retyped them. `permutation` is
the transposition from the caller's axes to the build's, so outputs take its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from covey_agent.runner.errors import BadOutputError
from covey_agent.runner.protocol import TensorInfo
from covey_contract.manifest import DataType, TensorSpec

Array = npt.NDArray[Any]

NUMPY_TYPES: dict[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
}


def build_name(spec: TensorSpec) -> str:
    return spec.build_name or spec.name


def from_wire(info: TensorInfo, data: memoryview) -> Array:
    """The caller's tensor over the bytes that came; read-only, no copy."""
    return np.frombuffer(data, dtype=NUMPY_TYPES[DataType(info.datatype)]).reshape(info.shape)


def raw_bytes(array: Array) -> memoryview:
    """The elements of a contiguous array, as they travel; no copy."""
    return array.reshape(-1).view(np.uint8).data


def to_build(spec: TensorSpec, array: Array) -> Array:
    """The caller's tensor in the build's layout, contiguous."""
    if spec.permutation is not None:
        array = array.transpose(spec.permutation)
    return np.ascontiguousarray(array)


def to_caller(spec: TensorSpec, array: Array) -> Array:
    """The build's tensor in the caller's layout and type, contiguous.

    Raises `BadOutputError` if it has another shape than the manifest says, a type of another kind, or a NaN.
    """
    if spec.permutation is not None:
        if array.ndim != len(spec.permutation):
            raise BadOutputError(f"output {spec.name!r} has shape {array.shape}; {len(spec.permutation)} axes expected")
        array = array.transpose(np.argsort(spec.permutation))
    fits = array.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise BadOutputError(f"output {spec.name!r} has shape {array.shape} instead of {spec.shape}")
    wanted = NUMPY_TYPES[spec.datatype]
    # A build may compute int64 as int32, or FP32 as FP16; a float for an integer is another thing.
    if not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise BadOutputError(f"output {spec.name!r} is of type {array.dtype} instead of {wanted}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise BadOutputError(f"output {spec.name!r} contains NaN")
    return np.ascontiguousarray(array, dtype=wanted)


def map_inputs(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Callers' tensors by callers' names -> the build's by the build's names."""
    return {build_name(spec): to_build(spec, arrays[spec.name]) for spec in specs}


def map_outputs(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The build's tensors by the build's names -> callers' by callers' names; raises `BadOutputError`."""
    outputs = {}
    for spec in specs:
        if build_name(spec) not in arrays:
            raise BadOutputError(f"the build has no output {build_name(spec)!r}; it has {', '.join(sorted(arrays))}")
        outputs[spec.name] = to_caller(spec, arrays[build_name(spec)])
    return outputs


def example_inputs(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Zeros of the callers' shapes, 1 where a request may choose: for warming up a build without golden vectors."""
    return {
        spec.name: np.zeros([1 if size < 0 else size for size in spec.shape], NUMPY_TYPES[spec.datatype])
        for spec in specs
    }
