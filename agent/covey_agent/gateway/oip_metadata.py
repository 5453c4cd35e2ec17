"""What the Open Inference Protocol tells of a model, by its build's manifest: pure."""

from __future__ import annotations

from typing import Any

from covey_contract.manifest import Manifest, TensorSpec


def model_metadata(manifest: Manifest, build: str) -> dict[str, Any]:
    return {
        "name": manifest.model,
        "versions": [manifest.version],
        "platform": f"covey_{manifest.runtime}",
        "inputs": [_tensor_metadata(spec) for spec in manifest.inputs],
        "outputs": [_tensor_metadata(spec) for spec in manifest.outputs],
        "parameters": {"covey_build": build, "covey_target": manifest.target, **manifest.metadata},
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape}


def model_config(manifest: Manifest) -> dict[str, Any]:
    """The model's configuration as Triton describes it, as far as it means something here."""
    return {
        "name": manifest.model,
        "platform": f"covey_{manifest.runtime}",
        "backend": manifest.runtime.value,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [_tensor_config(spec) for spec in manifest.inputs],
        "output": [_tensor_config(spec) for spec in manifest.outputs],
        "instance_group": [{"name": manifest.model, "kind": "KIND_AUTO", "count": 1}],
        "parameters": {name: {"string_value": value} for name, value in manifest.metadata.items()},
    }


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": spec.shape}
