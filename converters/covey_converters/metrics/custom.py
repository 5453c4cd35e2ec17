"""A metric of the operator's own: a Python function `module:function`, imported and run in the build process.

    def word_accuracy(outputs, evaluation):
        '''`outputs`: {name: (n, *shape)} of the source or of a build; `evaluation`: every array of the evaluation file, with
        `labels` and whatever else it holds. Returns one number; higher is better.'''

It is called once for the source and once for each build. The build process has no network, and limits of CPU, memory and time; a
function that raises is a failed build with its message, one that takes the process down a failed build with the log's tail.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError, ConvertError, MetricError, RecipeError
from covey_converters.metrics.judged import Judged
from covey_converters.parity import Outputs, usable
from covey_converters.samples import LABELS, Samples

Arrays = dict[str, NDArray[np.generic]]


def judge(function: str, source: Outputs, build: Outputs, samples: Samples, budget: float) -> Judged:
    """The function's figure for source and build; a build whose outputs cannot be compared has none and gets 0."""
    if samples.synthetic:
        raise BadInputError(f"metric {function} needs an evaluation (--evaluation NPZ)")
    metric = load(function)
    evaluation: Arrays = {**samples.others, **samples.arrays}
    if samples.labels is not None:
        evaluation[LABELS] = samples.labels
    reference = _figure(function, metric, source, evaluation, MetricError)
    fits = all(usable(source[name], build[name]) for name in source)
    accuracy = Accuracy(
        metric=function,
        source=reference,
        build=_figure(function, metric, build, evaluation, RecipeError) if fits else min(reference, 0.0),
        samples=len(samples),
        budget=budget,
    )
    return Judged(accuracy, frozenset(source))


def load(function: str) -> Callable[[Arrays, Arrays], object]:
    """Raises `BadInputError` if there is no such function."""
    module, _, name = function.partition(":")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001  # importing runs the operator's code, which may raise anything
        raise BadInputError(f"metric {function}: {type(error).__name__}: {_brief(error)}") from error
    if not callable(found):
        raise BadInputError(f"metric {function} is not a function")
    return found


def _figure(
    function: str,
    metric: Callable[[Arrays, Arrays], object],
    outputs: Outputs,
    evaluation: Arrays,
    fault: type[ConvertError],
) -> float:
    try:
        # Copies: a metric that writes into its arguments must not change what is judged next.
        value = float(metric(*({name: array.copy() for name, array in of.items()} for of in (outputs, evaluation))))  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001  # the operator's code may raise anything; its message is the report
        raise fault(f"metric {function} failed: {type(error).__name__}: {_brief(error)}") from error
    if not math.isfinite(value):
        raise fault(f"metric {function} gave {value}; a finite number is needed")
    return value


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
