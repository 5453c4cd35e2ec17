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


def to_build(spec: TensorSpec, array: Array) -> Array:
    """The caller's tensor in the build's layout, contiguous."""
    if spec.permutation is not None:
        array = array.transpose(spec.permutation)
    return np.ascontiguousarray(array)


class CallerOutput:
    """One output in its caller's layout and type. A type and shape that were found right are not looked at again, only their numbers."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._wanted = NUMPY_TYPES[spec.datatype]
        self._inverse = None if spec.permutation is None else tuple(int(axis) for axis in np.argsort(spec.permutation))
        self._right: tuple[np.dtype[Any], tuple[int, ...]] | None = None

    def of(self, array: Array) -> Array:
        """The build's tensor, contiguous.

        Raises `BadOutputError` if it has another shape than the manifest says, a type of another kind, or a NaN.
        """
        if self._inverse is not None:
            if array.ndim != len(self._inverse):
                raise BadOutputError(
                    f"output {self._spec.name!r} has shape {array.shape}; {len(self._inverse)} axes expected"
                )
            array = array.transpose(self._inverse)
        if (array.dtype, array.shape) != self._right:
            self._check(array)
            self._right = (array.dtype, array.shape)
        if array.dtype.kind == "f" and _has_nan(array):
            raise BadOutputError(f"output {self._spec.name!r} contains NaN")
        return np.ascontiguousarray(array, dtype=self._wanted)

    def _check(self, array: Array) -> None:
        spec = self._spec
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise BadOutputError(f"output {spec.name!r} has shape {array.shape} instead of {spec.shape}")
        # A build may compute int64 as int32, or FP32 as FP16; a float for an integer is another thing.
        if not np.can_cast(array.dtype, self._wanted, casting="same_kind"):
            raise BadOutputError(f"output {spec.name!r} is of type {array.dtype} instead of {self._wanted}")


def _has_nan(array: Array) -> bool:
    # The largest number is NaN if any is: one pass, and nothing is allocated.
    return array.size > 0 and bool(np.isnan(array.max()))


def to_caller(spec: TensorSpec, array: Array) -> Array:
    """The build's tensor in the caller's layout and type, contiguous; raises `BadOutputError`."""
    return CallerOutput(spec).of(array)


def map_inputs(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Callers' tensors by callers' names -> the build's by the build's names."""
    return BuildInputs(specs).of(arrays)


class BuildInputs:
    """A build's inputs in its own terms."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._inputs = [(build_name(spec), spec) for spec in specs]

    def of(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """By the build's names."""
        return {built: to_build(spec, arrays[spec.name]) for built, spec in self._inputs}


def map_outputs(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The build's tensors by the build's names -> callers' by callers' names; raises `BadOutputError`."""
    return CallerOutputs(specs).of(arrays)


class CallerOutputs:
    """A build's outputs in its callers' terms."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._outputs = [(spec.name, build_name(spec), CallerOutput(spec)) for spec in specs]

    def of(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """By callers' names; raises `BadOutputError`."""
        outputs = {}
        for name, built, output in self._outputs:
            array = arrays.get(built)
            if array is None:
                raise BadOutputError(f"the build has no output {built!r}; it has {', '.join(sorted(arrays))}")
            outputs[name] = output.of(array)
        return outputs


def example_inputs(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Zeros of the callers' shapes, 1 where a request may choose: for warming up a build without golden vectors."""
    return {
        spec.name: np.zeros([1 if size < 0 else size for size in spec.shape], NUMPY_TYPES[spec.datatype])
        for spec in specs
    }
