"""OpenVINO. The manifest's options are compile properties; `DEVICE` among them chooses the device (default: CPU).

Without an explicit `INFERENCE_PRECISION_HINT` some CPUs compute in bf16 and answer otherwise than the machine that built it, so the default here is f32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# OpenVINO's telemetry stays off in what it takes for continuous integration; a device phones nobody but its fleet server.
os.environ.setdefault("CI", "true")

import openvino

from covey_agent.runner.backends import Model
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest


class OpenVinoModel:
    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [(sorted(output.get_names()), output) for output in compiled.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        # A tensor may go by several names; the manifest may use any of them.
        return {name: results[output] for names, output in self._outputs for name in names}


def load(folder: Path, manifest: Manifest, threads: int) -> Model:
    properties: dict[str, str | int | float | bool] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        **manifest.options,
    }
    device = str(properties.pop("DEVICE", "CPU"))
    if device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = threads
    # Beside the build, never in it: a build's folder holds what its manifest lists and nothing else.
    properties["CACHE_DIR"] = str(folder.with_name(folder.name + ".cache"))
    return OpenVinoModel(openvino.Core().compile_model(str(folder / manifest.entry), device, properties))
