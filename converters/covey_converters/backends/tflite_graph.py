"""A float TFLite model as a graph: which of its operators stay in float, and how they are called in the source's.

onnx2tf renames tensors: a layout is added to a name or put in place of an output's number, and what goes into a convolution may be called by
that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from covey_converters import layers
from covey_converters.backend import Source
from covey_converters.backends.onnx_graph import quantisable
from covey_converters.backends.onnx_trials import trials
from covey_converters.errors import RecipeError
from covey_converters.heads import Operator, head, onnx_head, onnx_operators
from covey_converters.samples import Samples

_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"})
_PRODUCTS, _CONVOLUTIONS = ("MatMul", "Gemm"), ("Conv", "ConvTranspose")


def interpreter(path: Path, *, threads: int, reference: bool = False) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    found = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=resolver)
    found.allocate_tensors()
    return found


def head_tensors(model: Path) -> list[str]:
    """What the head's operators give: a recipe of the quantiser's names operators by that. Raises `RecipeError`."""
    found = _given(_head(interpreter(model, threads=1, reference=True)))
    if not found:
        raise RecipeError("the graph has no head apart from the rest")
    return found


def costly_tensors(source: Source, model: Path, share: float, calibration: Samples) -> list[str]:
    """The same of the head and of the costliest layers, up to this share of the work; raises `RecipeError`."""
    count = source.review.operators.get
    if sum(count(kind, 0) for kind in _PRODUCTS) > sum(count(kind, 0) for kind in _CONVOLUTIONS):
        raise RecipeError("of matrix products above all, which dynamic range computes in INT8 as well")
    graph = quantisable(source)
    chosen = layers.in_float(trials(graph, calibration, source.work), share, onnx_head(graph))
    given = called({tensor for layer in chosen for tensor in layer.outputs}, onnx_operators(graph))
    loaded = interpreter(model, threads=1, reference=True)
    same = [
        layer
        for layer in layers.layers(_operators(loaded), _WEIGHTED)
        if {*map(_made_of, layer.operators[0].outputs)} & given
    ]
    if chosen and not same:
        raise RecipeError("onnx2tf left none of the names of the layers that would stay in float")
    return _given([*_head(loaded), *(operator for layer in same for operator in layer.operators)])


def _head(loaded: Any) -> list[Operator]:
    return head(_operators(loaded), [str(detail["name"]) for detail in loaded.get_output_details()], _WEIGHTED)


def _given(operators: Sequence[Operator]) -> list[str]:
    return list(dict.fromkeys(tensor for operator in operators for tensor in operator.outputs))


def _operators(loaded: Any) -> list[Operator]:
    """Tensors by their names, which are unique in what onnx2tf makes."""
    names = {int(detail["index"]): str(detail["name"]) for detail in loaded.get_tensor_details()}
    return [
        Operator(
            name=str(position),
            kind=str(found["op_name"]),
            inputs=tuple(names[index] for index in found["inputs"] if index in names),
            outputs=tuple(names[index] for index in found["outputs"] if index in names),
        )
        for position, found in enumerate(loaded._get_ops_details())  # noqa: SLF001  # LiteRT has no public list of operators
    ]


def called(given: Collection[str], operators: Sequence[Operator]) -> set[str]:
    """What onnx2tf may call these tensors of the source's: by their own names, or as the input of whoever takes them."""
    takers = [operator.name for operator in operators if set(operator.inputs) & set(given)]
    return {*map(_made_of, given), *(_made_of(f"{name}_input") for name in takers)}


def _made_of(tensor: str) -> str:
    """Without the layout, which onnx2tf adds to a name or puts in place of the output's number."""
    return re.sub(r"(_0)?(_nhwc)?$", "", plain(tensor))


def plain(name: str) -> str:
    """Without what TensorFlow does not allow in names, or adds to them."""
    name = re.sub(r"^serving_default_|:\d+$", "", name)
    return re.sub(r"[^A-Za-z0-9]+", "_", name)
