"""ONNX Runtime on the CPU. The manifest's options are session configuration entries (`session.…`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from covey_agent.runner.backends import Model
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest

ERRORS_ONLY = 3


class OnnxRuntimeModel:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


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
