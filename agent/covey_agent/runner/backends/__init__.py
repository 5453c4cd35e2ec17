"""The inference runtimes: one module each, imported only when a build asks for it, and one line each in `BACKENDS`.

A runtime itself is imported in its module alone. Adding one means adding a file with a `load` and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from covey_agent.runner.errors import LoadError
from covey_agent.runner.tensors import Array
from covey_contract.manifest import Manifest, Runtime
from covey_contract.reasons import Reason


class Model(Protocol):
    """A loaded build. Tensors by the build's own names, in its own layout."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output; they stay valid until the next call. Whatever the runtime raises passes through."""
        ...


class BackendModule(Protocol):
    """What a module of this package offers."""

    def load(self, folder: Path, manifest: Manifest, threads: int) -> Model: ...


@dataclass(frozen=True)
class Backend:
    """`own_threads`: computes in threads that it starts while it loads, so these must not stay at idle priority."""

    module: str
    own_threads: bool


BACKENDS: dict[Runtime, Backend] = {
    Runtime.ONNXRUNTIME: Backend("covey_agent.runner.backends.onnxruntime", own_threads=False),
    Runtime.OPENVINO: Backend("covey_agent.runner.backends.openvino", own_threads=True),
    Runtime.TFLITE: Backend("covey_agent.runner.backends.tflite", own_threads=False),
    Runtime.TENSORRT: Backend("covey_agent.runner.backends.tensorrt", own_threads=False),
    Runtime.TENSORRT_RTX: Backend("covey_agent.runner.backends.tensorrt", own_threads=False),
}


def load_model(folder: Path, manifest: Manifest, threads: int) -> Model:
    """The build in `folder`, loaded by its runtime.

    Raises `LoadError` with NO_RUNTIME where the runtime is not installed; what the runtime itself raises passes through.
    """
    try:
        module = cast("BackendModule", importlib.import_module(BACKENDS[manifest.runtime].module))
    except (ImportError, OSError) as error:  # OSError: a shared library that the runtime needs is missing
        raise LoadError(Reason.NO_RUNTIME, f"{manifest.runtime} is not usable here: {error}") from error
    return module.load(folder, manifest, threads)
