"""Chooses the metric of a model and asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from covey_converters.errors import BadInputError
from covey_converters.metrics import characters, classification, custom, decisions, detection, embedding, regions
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
    if declared.kind == CUSTOM:
        return custom.judge(declared.options["function"], source, build, samples, budget)
    return _KINDS[declared.kind](declared.options, source, build, samples, budget)


_KINDS: dict[str, Callable[[Mapping[str, str], Outputs, Outputs, Samples, float], Judged | None]] = {
    "classification": classification.judge,
    "detection": detection.judge,
    "regions": regions.judge,
    "characters": characters.judge,
    "decisions": decisions.judge,
    "embedding": embedding.judge,
}
