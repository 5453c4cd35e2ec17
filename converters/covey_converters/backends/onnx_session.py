"""An ONNX model in ONNX Runtime on the CPU: how sources, references and ONNX Runtime's own builds are run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from covey_converters.backend import Array


class OnnxRuntimeSession:
    """A model file in ONNX Runtime on the CPU. `optimise=False`: the graph's own operators, one by one."""

    def __init__(self, model: Path | bytes, *, threads: int, optimise: bool = True) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
