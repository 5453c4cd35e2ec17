"""The task's own metric: which one judges a model, and what it says of a build.

A metric is declared as `KIND` or `KIND:key=value,…`, by `--metric`, by the version's metadata, or in the evaluation file (an
array `metric` holding one string); without a declaration, an evaluation with labels is one of a classifier. Everything here
compares a build with its source on the same samples, and a higher figure is better.
"""

from __future__ import annotations

from covey_converters.metrics.declared import CUSTOM, Declared, parse
from covey_converters.metrics.judge import Judged, chosen, judge

__all__ = ["CUSTOM", "Declared", "Judged", "chosen", "judge", "parse"]
