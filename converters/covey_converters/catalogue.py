"""Which targets there are, and which of them this machine can build."""

from __future__ import annotations

import importlib.util
import os

import msgspec

from covey_contract.manifest import Runtime
from covey_converters import toolchain
from covey_converters.backends import BACKENDS, CPU_TARGETS, backend_for

# The toolchains of their own that a runtime's builds need.
_TOOLCHAINS = {Runtime.TFLITE: "onnx2tf"}
_NEED_HARDWARE = ("tensorrt-fp32-smNN", "tensorrt-fp16-smNN", "tensorrt-int8-smNN")
_CHECKS = ("tensorrt-rtx-fp32", "tensorrt-rtx-fp16", "tensorrt-rtx-int8")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """`missing` says why it cannot be built here; empty if it can."""

    target: str
    buildable: bool
    missing: str
    packages: dict[str, str]


def targets() -> list[Target]:
    from covey_converters.build import versions

    found = []
    for name in (*CPU_TARGETS, *_NEED_HARDWARE, *_CHECKS):
        backend, _ = backend_for(name.replace("smNN", "sm87"))
        missing = _missing(name, backend.runtime)
        found.append(Target(target=name, buildable=not missing, missing=missing, packages=versions(backend.packages)))
    return found


def _missing(target: str, runtime: Runtime) -> str:
    if not _installed(BACKENDS[runtime].module):
        return f"{BACKENDS[runtime].module.split('.')[0]} is not installed here"
    if target in _CHECKS:
        return "checks that a graph is fit for TensorRT; not released without a GPU to run it"
    name = _TOOLCHAINS.get(runtime)
    if name and toolchain.find(name, toolchain.places(os.environ)).folder is None:
        return f"toolchain {name} is not installed; run: covey-convert toolchain install {name}"
    return ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def buildable() -> tuple[str, ...]:
    return tuple(found.target for found in targets() if found.buildable)
