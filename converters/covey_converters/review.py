"""The review of a source model on import: is it a model that we can build from, and what are its inputs and outputs?

An ONNX file comes from outside. It is read with limits, in the build process, and everything wrong with it is a
`BadInputError` of one line. Invariant: a `Review` describes a model that the ONNX checker accepts, whose weights
lie inside the file or its own folder, and whose inputs have fixed shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey_contract.manifest import DataType, TensorSpec
from covey_converters.errors import BadInputError

MAX_SOURCE_BYTES = 2 << 30
MAX_TENSOR_BYTES = 4 << 30
MAX_NODES = 200_000
OPSETS = range(7, 27)

# The element types of ONNX (TensorProto.DataType) as the Open Inference Protocol names them.
_DATATYPES = {
    1: DataType.FP32, 2: DataType.UINT8, 3: DataType.INT8, 4: DataType.UINT16, 5: DataType.INT16, 6: DataType.INT32,
    7: DataType.INT64, 9: DataType.BOOL, 10: DataType.FP16, 11: DataType.FP64, 12: DataType.UINT32, 13: DataType.UINT64,
}  # fmt: skip


@dataclass(frozen=True)
class Review:
    """What a source model is. `inputs` are fixed; an output's dimension is -1 where it depends on the data."""

    opset: int
    ir_version: int
    producer: str
    size: int  # bytes of the file
    nodes: int
    parameters: int
    activations: int  # elements of all tensors between the nodes, for one inference
    operators: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()


def load(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Any, Review]:
    """The model (an onnx.ModelProto, its inputs' shapes fixed) and its review; raises `BadInputError`.

    An open first dimension is taken to be the batch and becomes 1; any other open dimension must be given in `shapes`.
    """
    import onnx

    _check_size(path)
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001  # protobuf raises its own kinds, which differ by implementation
        raise BadInputError(f"{path.name}: not an ONNX model, or cut short ({_first_line(error)})") from error
    _check_structure(path, model)
    notes = _fix_inputs(path, model, shapes or {})
    _check_external_data(path, model)
    try:
        onnx.checker.check_model(str(path) if _external(model) else model)
        onnx.load_external_data_for_model(model, str(path.parent))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # noqa: BLE001  # the checker raises ValidationError, ValueError and RuntimeError alike
        raise BadInputError(f"{path.name}: the ONNX checker refuses it: {_first_line(error)}") from error
    return model, _review(path, model, notes)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    if size == 0:
        raise BadInputError(f"{path.name}: the file is empty")
    if size > MAX_SOURCE_BYTES:
        raise BadInputError(f"{path.name}: {size} bytes; a source model may have {MAX_SOURCE_BYTES}")


def _check_structure(path: Path, model: Any) -> None:
    graph = model.graph
    if not model.ir_version or not graph.node or not graph.output:
        raise BadInputError(f"{path.name}: not an ONNX model: it has no graph, or was cut short")
    if len(graph.node) > MAX_NODES:
        raise BadInputError(f"{path.name}: {len(graph.node)} nodes; at most {MAX_NODES}")
    opset = _opset(model)
    if opset not in OPSETS:
        raise BadInputError(f"{path.name}: opset {opset}; {OPSETS[0]} to {OPSETS[-1]} are supported")
    custom = sorted({node.domain for node in graph.node} - {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
    if custom:
        node = next(node for node in graph.node if node.domain == custom[0])
        raise BadInputError(f"{path.name}: node {node.name!r} is a custom operator {node.domain}::{node.op_type}")
    for tensor in graph.initializer:
        claimed = math.prod(tensor.dims) if all(dim >= 0 for dim in tensor.dims) else -1
        if not 0 <= claimed * _itemsize(tensor.data_type) <= MAX_TENSOR_BYTES:
            raise BadInputError(
                f"{path.name}: tensor {tensor.name!r} claims the shape {list(tensor.dims)}, which is too large"
            )


def _fix_inputs(path: Path, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Give every input a fixed shape, in place; what was decided, for the report."""
    notes: list[str] = []
    inputs = _inputs(model)
    if not inputs:
        raise BadInputError(f"{path.name}: the model has no inputs")
    unknown = sorted(set(shapes) - {value.name for value in inputs})
    if unknown:
        raise BadInputError(f"{path.name}: no input {unknown[0]!r}; it has {', '.join(v.name for v in inputs)}")
    for value in inputs:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or kind.elem_type not in _DATATYPES:
            raise BadInputError(f"{path.name}: input {value.name!r} is not a tensor of numbers")
        if not kind.HasField("shape"):
            raise BadInputError(f"{path.name}: input {value.name!r} has no shape")
        wanted = shapes.get(value.name)
        if wanted is not None and len(wanted) != len(kind.shape.dim):
            raise BadInputError(
                f"{path.name}: input {value.name!r} has {len(kind.shape.dim)} dimensions, not {len(wanted)}"
            )
        for axis, dim in enumerate(kind.shape.dim):
            fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
            if wanted is not None and fixed is not None and wanted[axis] != fixed:
                raise BadInputError(
                    f"{path.name}: dimension {axis} of input {value.name!r} is {fixed}, not {wanted[axis]}"
                )
            if fixed is None:
                name = dim.dim_param or str(axis)
                if wanted is None and axis > 0:
                    raise BadInputError(
                        f"{path.name}: dimension {name!r} of input {value.name!r} is open; give the input's shape "
                        f"(--shape {value.name}=…)"
                    )
                fixed = wanted[axis] if wanted is not None else 1
                dim.dim_value = fixed
                notes.append(f"open dimension {name!r} of input {value.name!r} fixed to {fixed}")
        if math.prod(dim.dim_value for dim in kind.shape.dim) * 8 > MAX_TENSOR_BYTES:
            raise BadInputError(f"{path.name}: input {value.name!r} claims too large a shape")
    for value in (*model.graph.output, *model.graph.value_info):
        # What was open is inferred anew from the fixed inputs.
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.Clear()
    return tuple(notes)


def _external(model: Any) -> list[Any]:
    return [tensor for tensor in model.graph.initializer if tensor.data_location == 1]


def _check_external_data(path: Path, model: Any) -> None:
    for tensor in _external(model):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        # Text that is no UTF-8 comes as bytes; and no file has a name with a zero byte.
        plain = isinstance(location, str) and "\0" not in location
        target = (path.parent / location).resolve() if plain else path
        if not plain or not location or not target.is_relative_to(path.parent.resolve()):
            raise BadInputError(
                f"{path.name}: tensor {tensor.name!r} wants data from {location!r}, outside the model's folder"
            )
        if not target.is_file():
            raise BadInputError(f"{path.name}: tensor {tensor.name!r} wants data from {location!r}, which is not there")


def _review(path: Path, model: Any, notes: tuple[str, ...]) -> Review:
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    for value in model.graph.output:
        if value.type.tensor_type.elem_type not in _DATATYPES:
            raise BadInputError(f"{path.name}: output {value.name!r} is not a tensor of numbers")
    return Review(
        opset=_opset(model),
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        size=path.stat().st_size,
        nodes=len(model.graph.node),
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        activations=sum(max(math.prod(_sizes(value)), 0) for value in model.graph.value_info),
        operators=dict(sorted(operators.items())),
        inputs=tuple(_spec(value) for value in _inputs(model)),
        outputs=tuple(_spec(value) for value in model.graph.output),
        notes=notes,
    )


def _inputs(model: Any) -> list[Any]:
    # Old exporters list weights among the inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(name=value.name, datatype=_DATATYPES[kind.elem_type], shape=_sizes(value))


def _sizes(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims)


def _opset(model: Any) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _itemsize(data_type: int) -> int:
    datatype = _DATATYPES.get(data_type)
    return datatype.itemsize if datatype else 1


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
