"""LiteRT (ai_edge_litert), or the older tflite_runtime where only that is to be had.

A build whose inputs or outputs are quantised takes and gives the callers' floats: the conversion by scale and zero point is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covey_agent.runner.backends import Model
from covey_agent.runner.errors import LoadError
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest
from covey_contract.reasons import Reason

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

Detail = dict[str, Any]


class TfliteModel:
    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._inputs: dict[str, Detail] = {detail["name"]: detail for detail in interpreter.get_input_details()}
        self._outputs: list[Detail] = interpreter.get_output_details()
        self._shapes = {name: tuple(detail["shape"]) for name, detail in self._inputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._resize(inputs)
        for name, array in inputs.items():
            detail = self._inputs[name]
            self._interpreter.set_tensor(detail["index"], _quantised(detail, array))
        self._interpreter.invoke()
        return {
            detail["name"]: _dequantised(detail, self._interpreter.get_tensor(detail["index"]))
            for detail in self._outputs
        }

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        changed = {name: array.shape for name, array in inputs.items() if array.shape != self._shapes[name]}
        if not changed:
            return
        for name, shape in changed.items():
            self._interpreter.resize_tensor_input(self._inputs[name]["index"], shape)
        self._interpreter.allocate_tensors()
        self._shapes.update(changed)


def _quantised(detail: Detail, array: Array) -> Array:
    wanted: np.dtype[Any] = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if array.dtype.kind == "f" and wanted.kind in "iu" and scale:
        limits = np.iinfo(wanted.type)
        quantised: Array = np.clip(np.rint(array / scale + zero_point), limits.min, limits.max).astype(wanted)
        return quantised
    return array.astype(wanted, copy=False)


def _dequantised(detail: Detail, array: Array) -> Array:
    scale, zero_point = detail["quantization"]
    if array.dtype.kind in "iu" and scale:
        real: Array = (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        return real
    return array


def load(folder: Path, manifest: Manifest, threads: int) -> Model:
    interpreter = Interpreter(model_path=str(folder / manifest.entry), num_threads=threads)
    interpreter.allocate_tensors()
    model = TfliteModel(interpreter)
    known = {detail["name"] for detail in interpreter.get_input_details()}
    for spec in manifest.inputs:
        if (spec.build_name or spec.name) not in known:
            raise LoadError(
                Reason.LOAD_FAILED, f"the build has no input {spec.build_name or spec.name!r}; it has {sorted(known)}"
            )
    return model
