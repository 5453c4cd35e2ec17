"""What a push may declare about how its builds are judged, and what of the evaluation file is read to check it."""

from __future__ import annotations

import doctest
import io
import zipfile

import numpy as np
import pytest

from covey_contract import metric
from covey_contract.errors import DecodeError


def npz(**arrays: object) -> io.BytesIO:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub knows no names of arrays
    file.seek(0)
    return file


def test_examples_hold() -> None:
    assert doctest.testmod(metric).failed == 0


X = np.zeros((2, 3))
LABELS = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("declared", "evaluation"),
    [
        ("", None),
        ("", npz(x=X)),
        ("", npz(x=X, labels=LABELS)),
        ("classification", npz(x=X, labels=LABELS)),
        ("embedding", npz(x=X)),
        ("my.metrics:words", npz(x=X)),
        ("", npz(x=X, metric="detection:threshold=0.3")),
        ("", npz(x=X, labels=LABELS, metric="classification:figure=f1")),
    ],
)
def test_what_can_be_judged(declared: str, evaluation: io.BytesIO | None) -> None:
    metric.check_evaluation(declared, evaluation)
    assert evaluation is None or evaluation.tell() == 0


@pytest.mark.parametrize(
    ("declared", "evaluation", "line"),
    [
        ("accuracy", npz(x=X), "is none of classification"),
        ("classification:figure=roc", npz(x=X, labels=LABELS), "figure 'roc' is none of"),
        ("embedding", None, "judges nothing without an evaluation"),
        ("classification", npz(x=X), "needs an evaluation with an array 'labels'"),
        ("", npz(x=X, metric="classification"), "needs an evaluation with an array 'labels'"),
        ("", npz(x=X, metric="os:system"), "names the function 'os:system'"),
        ("", npz(x=X, metric=np.array(["a", "b"])), "'metric' must be one string"),
        ("", npz(x=X, metric=np.array(3)), "'metric' must be one string"),
        ("", npz(x=X, metric="u" * 400), "is none of"),
        ("", io.BytesIO(b"no archive"), "not a readable zip file"),
        ("", io.BytesIO(), "not a readable zip file"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_the_push(declared: str, evaluation: io.BytesIO | None, line: str) -> None:
    with pytest.raises(DecodeError, match=line):
        metric.check_evaluation(declared, evaluation)


def test_a_zip_bomb_of_a_metric_is_not_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metric.npy", bytes(50_000_000))
        archive.writestr("x.npy", b"")
    with pytest.raises(DecodeError, match="must be one string"):
        metric.check_evaluation("", file)


def test_an_archive_without_arrays() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DecodeError, match="holds no arrays"):
        metric.check_evaluation("", file)
