"""The registry of backends, their recipes, and the parts of them that decide without a toolchain."""

from __future__ import annotations

import pytest

from covey_contract.errors import DecodeError
from covey_contract.manifest import DataType, Runtime, TensorSpec
from covey_converters.backends import BACKENDS, CPU_TARGETS, backend_for, tflite
from covey_converters.errors import UnsupportedError


def test_every_runtime_has_a_backend() -> None:
    assert set(BACKENDS) == set(Runtime)
    assert all(backend.runtime is runtime for runtime, backend in BACKENDS.items())


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_every_target_has_recipes(target: str) -> None:
    backend, precision = backend_for(target)
    recipes = backend.recipes(precision, calibrated=True)
    assert recipes
    assert len(set(recipes)) == len(recipes)


def test_a_name_that_is_no_target() -> None:
    with pytest.raises(DecodeError, match="RUNTIME-PRECISION"):
        backend_for("coreml-fp16")


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("onnxruntime-fp16", "there is no onnxruntime-fp16 build"),
        ("openvino-int8", "needs calibration data"),
        ("tensorrt-int8-sm87", "needs calibration data"),
        ("tensorrt-rtx-int8", "needs calibration data"),
    ],
)
def test_targets_that_cannot_be_without_more(target: str, line: str) -> None:
    backend, precision = backend_for(target)
    with pytest.raises(UnsupportedError, match=line):
        backend.recipes(precision, calibrated=False)


@pytest.mark.parametrize(
    ("shape", "build", "permutations"),
    [
        ((1, 3, 8, 8), [1, 8, 8, 3], [(0, 2, 3, 1)]),
        ((1, 3, 8, 8), [1, 3, 8, 8], [None]),
        ((1, 8, 8, 8), [1, 8, 8, 8], [None, (0, 2, 3, 1)]),
        ((2, 1, 128), [2, 128, 1], [(0, 2, 1)]),
        ((1, 10), [1, 10], [None]),
    ],
)
def test_layouts_that_a_tensor_may_have(
    shape: tuple[int, ...], build: list[int], permutations: list[tuple[int, ...] | None]
) -> None:
    spec = TensorSpec(name="a:0", datatype=DataType.FP32, shape=shape)
    [found] = tflite._candidates([spec], [{"name": "serving_default_a:0", "shape": build}])
    assert [choice.permutation for choice in found] == permutations
    assert {choice.build_name for choice in found} == {"serving_default_a:0"}


def test_a_tensor_that_became_something_else() -> None:
    spec = TensorSpec(name="a", datatype=DataType.FP32, shape=(1, 3, 8, 8))
    with pytest.raises(UnsupportedError, match=r"'a' of shape \[1, 3, 8, 8\] became \[8, 24\]"):
        tflite._candidates([spec], [{"name": "a", "shape": [8, 24]}])
