"""Adds up what requests looked like, until the window ends. Memory is bounded by the contract's bins."""

from __future__ import annotations

from collections.abc import Iterable

from covey_agent.runner.protocol import InputFlag, Result, Seen
from covey_contract.drift import SCORE_BINS, InputCounts, OutputCounts, OutputReference, Reference


class OutputTally:
    def __init__(self, reference: OutputReference) -> None:
        self._bins = len(reference.edges) + 1
        self.reset()

    def reset(self) -> None:
        self._count = 0
        self._classes: dict[int, int] = {}
        self._scores = [0] * SCORE_BINS
        self._values = [0] * self._bins

    def add(self, seen: Seen) -> None:
        self._count += len(seen.classes) + sum(seen.values)
        for index in seen.classes:
            self._classes[index] = self._classes.get(index, 0) + 1
        for index in seen.scores:
            self._scores[index] += 1
        for index, count in enumerate(seen.values):
            self._values[index] += count

    def take(self) -> OutputCounts:
        classified = bool(self._classes)
        counts = OutputCounts(
            count=self._count,
            classes=dict(sorted(self._classes.items())),
            scores=tuple(self._scores) if classified else (),
            values=tuple(self._values) if self._count and not classified else (),
        )
        self.reset()
        return counts


class InputTally:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._count = self._nan = self._constant = self._out_of_range = 0

    def add(self, flags: int) -> None:
        self._count += 1
        if flags:
            self._nan += bool(flags & InputFlag.NAN)
            self._constant += bool(flags & InputFlag.CONSTANT)
            self._out_of_range += bool(flags & InputFlag.OUT_OF_RANGE)

    def take(self) -> InputCounts:
        counts = InputCounts(count=self._count, nan=self._nan, constant=self._constant, out_of_range=self._out_of_range)
        self.reset()
        return counts


class Tally:
    """Of one build, by its manifest's reference."""

    def __init__(self, reference: Reference | None) -> None:
        reference = reference or Reference(samples=0)
        self._outputs = {name: OutputTally(one) for name, one in reference.outputs.items()}
        self._inputs = {name: InputTally() for name in reference.inputs}

    def add(self, result: Result) -> None:
        _add(self._outputs.values(), result.outputs_seen)
        for tally, flags in zip(self._inputs.values(), result.inputs_seen, strict=False):
            tally.add(flags)

    def take(self) -> tuple[dict[str, OutputCounts], dict[str, InputCounts]]:
        """Counts of what occurred since the last time, by name."""
        outputs = {name: tally.take() for name, tally in self._outputs.items()}
        inputs = {name: tally.take() for name, tally in self._inputs.items()}
        return (
            {name: counts for name, counts in outputs.items() if counts.count},
            {name: counts for name, counts in inputs.items() if counts.count},
        )


def _add(tallies: Iterable[OutputTally], seen: Iterable[Seen]) -> None:
    for tally, one in zip(tallies, seen, strict=False):
        tally.add(one)
