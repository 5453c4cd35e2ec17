"""Chooses the metric of a model and asks it."""

from __future__ import annotations

from covey_converters.errors import BadInputError
from covey_converters.metrics import classification, custom, detection, embedding
from covey_converters.metrics.declared import CUSTOM, Declared, parse
from covey_converters.metrics.judged import Judged
from covey_converters.parity import Outputs
from covey_converters.samples import Samples

__all__ = ["Judged", "chosen", "judge"]


def chosen(option: str, samples: Samples) -> Declared | None:
    """The metric that `option` names, or else the evaluation file, or else its labels; None if nothing does.

    Raises `BadInputError`; also for a file that names a function, because data must not choose which code is run.
    """
    if option:
        return parse(option)
    if samples.metric:
        declared = parse(samples.metric)
        if declared.kind == CUSTOM:
            raise BadInputError(f"the evaluation names the function {samples.metric!r}; only an option may (--metric)")
        return declared
    return Declared("classification") if samples.labels is not None else None


def judge(declared: Declared | None, source: Outputs, build: Outputs, samples: Samples, budget: float) -> Judged | None:
    """What the metric says of the build; None if there is no metric, or it says nothing about these outputs.

    Raises `BadInputError` if the metric does not fit the model or its data, `RecipeError` if it fails on this build alone.
    """
    if declared is None:
        return None
    match declared.kind:
        case "classification":
            return classification.judge(declared.options, source, build, samples, budget)
        case "detection":
            return detection.judge(declared.options, source, build, samples, budget)
        case "embedding":
            return embedding.judge(declared.options, source, build, samples, budget)
        case _:
            return custom.judge(declared.options["function"], source, build, samples, budget)
