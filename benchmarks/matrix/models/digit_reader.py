"""Which digit is it? A residual network that is trained here, because no package ships a heavy classifier together with labelled images.

scikit-learn's digits are real and labelled; 900 of them train (`benchmarks.matrix.residual`), the others calibrate, evaluate and are held
out. It is the classifier whose INT8 speed-up and accuracy the matrix sums up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.matrix import residual
from benchmarks.matrix.subject import Ask, Drawn, Score, Subject


def make(packages: Path, out: Path) -> None:
    del packages
    residual.save("dense", out)


def judge(packages: Path, drawn: Drawn, source: Ask, build: Ask) -> Score:
    """Accuracy at the labels."""
    del packages
    assert drawn.labels is not None
    right = [
        float(
            np.mean(
                [int(ask(drawn.sample(index))["scores"].argmax()) == label for index, label in enumerate(drawn.labels)]
            )
        )
        for ask in (source, build)
    ]
    return Score("accuracy", right[0], right[1], len(drawn))


SUBJECT = Subject(
    name="digit-reader",
    task="vision classifier",
    package="scikit-learn (its digits; the network is trained by benchmarks/matrix/train_digits.py)",
    source="residual.onnx",
    draw=residual.draw,
    judge=judge,
    calibration=96,
    evaluation=400,
    held_out=400,
    allowed={"fp32": 0.0, "fp16": 0.005, "int8": 0.01},
    make=make,
)
