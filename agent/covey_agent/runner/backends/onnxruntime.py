"""ONNX Runtime on the CPU. The manifest's options are session configuration entries (`session.…`)."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from pathlib import Path

import numpy as np
import onnxruntime

from covey_agent.runner.backends import Model
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest

ERRORS_ONLY = 3
Arrays = tuple[Array, ...]


class Bound:
    """Inputs that lie where they lay before, and outputs that are written to where they were: the session need not be told again."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], like: Mapping[str, Array]
    ) -> None:
        self.arrays: Arrays = tuple(inputs.values())
        self._session = session
        self._outputs = {name: np.empty_like(array, order="C") for name, array in like.items()}
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> dict[str, Array]:
        self._session.run_with_iobinding(self._binding)
        return self._outputs


class OnnxRuntimeModel:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        # Where every output has one shape, whatever is asked.
        self._fixed = all(isinstance(size, int) for output in session.get_outputs() for size in output.shape)
        self._last: Arrays = ()
        self._bound: Bound | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = tuple(inputs.values())
        if self._bound is not None and all(map(is_, arrays, self._bound.arrays)):
            try:
                return self._bound.run()
            except Exception:  # noqa: BLE001  # be it the graph, whose outputs have other shapes than it says: asked as ever
                self._bound, self._fixed = None, False
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        if self._fixed and len(arrays) == len(self._last) and all(map(is_, arrays, self._last)):
            self._bound = Bound(self._session, inputs, outputs)
        self._last = arrays
        return outputs


def load(folder: Path, manifest: Manifest, threads: int) -> Model:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Spinning threads win microseconds and take a core from everything else on the device.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in manifest.options.items():
        options.add_session_config_entry(name, str(int(value)) if isinstance(value, bool) else str(value))
    session = onnxruntime.InferenceSession(str(folder / manifest.entry), options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeModel(session)
