"""scikit-learn's 1,797 handwritten digits as the model wants them: FP32 [n, 1, 32, 32], 0 (paper) to 1 (ink).

The held-out images are never trained or calibrated on. The split is stratified and always the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

SIDE = 32
HELD_OUT = 450
CALIBRATION = 100


class Digits(NamedTuple):
    images: Images
    labels: Labels


def load() -> tuple[Digits, Digits]:
    """Training images (1,347) and held-out images (450)."""
    # Imported here: only the demo, the benches and the training need scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = preprocess(raw.images)
    labels = raw.target.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=7)
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def preprocess(images: NDArray[np.float64]) -> Images:
    """[n, 8, 8] in 0..16 to [n, 1, 32, 32] in 0..1: every pixel becomes 4 × 4 of them."""
    scaled = np.kron(images / 16.0, np.ones((1, SIDE // 8, SIDE // 8)))
    return scaled.astype(np.float32)[:, None, :, :]


def write_samples(folder: Path) -> tuple[Path, Path, Path]:
    """Write calibration.npz, evaluation.npz and labels.txt for `covey model push`; returns their paths."""
    train, held_out = load()
    calibration, evaluation, labels = folder / "calibration.npz", folder / "evaluation.npz", folder / "labels.txt"
    np.savez(calibration, image=train.images[:CALIBRATION])
    np.savez(evaluation, image=held_out.images, labels=held_out.labels)
    labels.write_text("".join(f"{digit}\n" for digit in range(10)))
    return calibration, evaluation, labels


def model_path(version: str) -> Path:
    """The committed ONNX file of a version ("1.0", "1.1", "1.2"), as train.py wrote it."""
    return Path(__file__).with_name(f"digits-{version}.onnx")
