"""Real files of each framework, made by that framework's own toolchain and turned into ONNX in the confined process.

Skipped where the toolchain is not installed: `covey-convert toolchain install torch|tensorflow`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from covey_contract.building import Outcome
from covey_converters import toolchain
from covey_converters.errors import BadInputError
from covey_converters.inspection import Inspection
from covey_converters.isolation import build_isolated, inspect_isolated
from covey_converters.spec import BuildSpec, Limits

_TORCH = """
import torch, torch.nn as nn
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))
torch.manual_seed(0)
model, image = Small().eval(), torch.rand(2, 1, 8, 8)
batch = {"image": {0: torch.export.Dim("batch")}}
torch.export.save(torch.export.export(model, (image,), dynamic_shapes=batch), "model.pt2")
torch.jit.trace(model, image).save("model.pt")
torch.save(model, "pickled.pt")
"""
_KERAS = """
import os
os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
import shutil, keras, tensorflow as tf
image = keras.Input((8, 8, 1), name="image")
hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(image))
model = keras.Model(image, keras.layers.Dense(3, name="scores")(hidden))
model.save("model.keras"); model.save("model.h5"); model.export("folder", verbose=False)
shutil.make_archive("saved", "zip", ".", "folder")
open("model.tflite", "wb").write(tf.lite.TFLiteConverter.from_saved_model("folder").convert())
numbers = keras.Input((4,))
keras.Model(numbers, keras.layers.Lambda(lambda x: x * 2)(numbers)).save("code.keras")
keras.Model(numbers, keras.layers.Lambda(lambda x: x * 2)(numbers)).save("code.h5")
"""


def _made(name: str, script: str, folder: Path) -> Path:
    found = toolchain.find(name, toolchain.places(os.environ))
    if found.folder is None:
        pytest.skip(f"toolchain {name} is not installed: covey-convert toolchain install {name}")
    python = toolchain.python_of(found.folder)
    subprocess.run(
        [python, "-I", "-W", "ignore", "-c", script], cwd=folder, check=True, capture_output=True, timeout=100
    )
    return folder


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made("torch", _TORCH, tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made("tensorflow", _KERAS, tmp_path_factory.mktemp("tensorflow"))


def _spec(source: Path, work: Path, target: str = "") -> BuildSpec:
    shapes: dict[str, tuple[int, ...]] = {"image": (1, 1, 8, 8)} if source.suffix == ".pt" else {}
    (work / "work").mkdir(exist_ok=True)
    return BuildSpec(
        model="m",
        version="1",
        target=target,
        source=str(source),
        out=str(work / "out"),
        work=str(work / "work"),
        shapes=shapes,
        measure_seconds=0.05,
    )


def _inspected(source: Path, work: Path) -> Inspection:
    return inspect_isolated(_spec(source, work), Limits(seconds=110))


@pytest.mark.parametrize(("name", "format_"), [("model.pt2", "torch-export"), ("model.pt", "torchscript")])
def test_pytorch(torch_files: Path, tmp_path: Path, name: str, format_: str) -> None:
    found = _inspected(torch_files / name, tmp_path)
    assert found.format == format_
    assert [(one.name, one.shape) for one in found.inputs] == [("image", (1, 1, 8, 8))]
    assert [one.shape for one in found.outputs] == [(1, 3)]
    assert any("answers as the source does" in note for note in found.notes)
    assert bool(found.dynamic) == (name == "model.pt2")


def test_pytorch_builds(torch_files: Path, tmp_path: Path) -> None:
    report = build_isolated(_spec(torch_files / "model.pt2", tmp_path, "openvino-fp16"), Limits(seconds=110))
    assert report.outcome is Outcome.BUILT, report.reason


def test_what_pytorch_pickled_is_refused(torch_files: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="pickle"):
        _inspected(torch_files / "pickled.pt", tmp_path)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("model.keras", "keras"),
        ("model.h5", "keras-h5"),
        ("folder", "saved-model"),
        ("saved.zip", "saved-model"),
        ("model.tflite", "tflite"),
    ],
)
def test_tensorflow(keras_files: Path, tmp_path: Path, name: str, format_: str) -> None:
    found = _inspected(keras_files / name, tmp_path)
    assert found.format == format_
    assert [one.shape for one in found.inputs] == [(1, 8, 8, 1)]
    assert [one.shape for one in found.outputs] == [(1, 3)]
    assert any("answers as the source does" in note for note in found.notes)
    if format_.startswith("keras"):
        assert [one.name for one in (*found.inputs, *found.outputs)] == ["image", "scores"]


def test_a_float_tflite_model_is_its_own_build(keras_files: Path, tmp_path: Path) -> None:
    source = keras_files / "model.tflite"
    report = build_isolated(_spec(source, tmp_path, "tflite-fp32"), Limits(seconds=110))
    assert report.outcome is Outcome.BUILT, report.reason
    built = (tmp_path / "out" / "model.tflite").read_bytes()
    assert hashlib.sha256(built).digest() == hashlib.sha256(source.read_bytes()).digest()


@pytest.mark.parametrize("name", ["code.keras", "code.h5"])
def test_layers_with_code_are_refused(keras_files: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="a layer Lambda, which brings Python code"):
        _inspected(keras_files / name, tmp_path)
