"""The graph that INT8 recipes start from, and what of it they have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from covey_converters.backend import Source
from covey_converters.errors import RecipeError

# Per-channel QDQ is invalid below opset 13: older graphs are brought to 17. Newer ones stay, for the conversion breaks some.
_QDQ_SINCE, _QDQ_OPSET = 13, 17


def quantisable(source: Source) -> Any:
    """The cleaned-up graph (an onnx.ModelProto) in an opset that has QDQ per channel, its shapes known and each node with a name of its own.

    Raises `RecipeError`.
    """
    import onnx

    model = onnx.load(str(source.start))
    if opset(source.start) < _QDQ_SINCE:
        try:
            model = onnx.version_converter.convert_version(model, _QDQ_OPSET)
        except Exception as error:  # noqa: BLE001  # the converter raises RuntimeError and its own kinds for what it cannot convert
            raise RecipeError(f"the graph cannot be brought to opset {_QDQ_OPSET}: {error}") from error
    model = onnx.shape_inference.infer_shapes(model)
    for node in model.graph.node:
        # What stays in float is told to the quantiser by name.
        node.name = node.name or node.output[0]
    return model


def opset(path: Path) -> int:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return max(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
