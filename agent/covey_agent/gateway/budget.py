"""What a model's runners may take of the device: memory, processor time, and whose turn it is when there is not enough for all.

A person says it at the device, since the device's other work is known there: `NAME:memory=600,cpus=1.5,priority=high,threads=2`; the
name `*` stands for every model that is not named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from covey_contract.manifest import MODEL_NAME

EVERY = "*"
_MB = 1_000_000
_MOST_CPUS, _MOST_THREADS, _MOST_MB = 1024.0, 1024, 1 << 24


class Priority(str, Enum):
    """Who computes first where several want to. By control groups a step is a factor of eight."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True)
class Budget:
    """Of each runner of a model; None: no limit. `cpus` are cores' worth of time, parts of one too."""

    memory_bytes: int | None = None
    cpus: float | None = None
    priority: Priority = Priority.NORMAL
    threads: int | None = None  # that compute; None: as the gateway is told for all, and not more than `cpus`

    def threads_of(self, usual: int) -> int:
        if self.threads is not None:
            return self.threads
        return usual if self.cpus is None else max(1, min(usual, math.ceil(self.cpus)))

    @property
    def divides_time(self) -> bool:
        """Whether it says anything about processor time."""
        return self.cpus is not None or self.priority is not Priority.NORMAL


class BudgetError(ValueError):
    """One line for people."""


def parse(text: str) -> tuple[str, Budget]:
    """Model (or `*`) and budget of `NAME:KEY=VALUE,…`. Raises `BudgetError`."""
    name, colon, rest = text.partition(":")
    if not colon or not rest:
        raise BudgetError(f"{text[:80]!r} is not NAME:KEY=VALUE,… such as digits:cpus=1.5,priority=high")
    if name != EVERY and not MODEL_NAME.fullmatch(name):
        raise BudgetError(f"{name[:80]!r} is not the name of a model, nor *")
    found: dict[str, str] = {}
    for part in rest.split(","):
        key, _, value = part.strip().partition("=")
        if key not in ("memory", "cpus", "priority", "threads"):
            raise BudgetError(f"{name}: {key[:40]!r} is none of memory, cpus, priority, threads")
        if key in found:
            raise BudgetError(f"{name}: {key} is said twice")
        found[key] = value
    return name, Budget(
        memory_bytes=int(_number(name, "memory", found["memory"], 1, _MOST_MB) * _MB) if "memory" in found else None,
        cpus=_number(name, "cpus", found["cpus"], 0.01, _MOST_CPUS) if "cpus" in found else None,
        priority=_priority(name, found["priority"]) if "priority" in found else Priority.NORMAL,
        threads=int(_number(name, "threads", found["threads"], 1, _MOST_THREADS)) if "threads" in found else None,
    )


def _number(name: str, key: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise BudgetError(f"{name}: {key}={text[:40]} is not a number from {least:g} to {most:g}")
    return value


def _priority(name: str, text: str) -> Priority:
    try:
        return Priority(text)
    except ValueError:
        raise BudgetError(f"{name}: priority={text[:40]} is none of low, normal, high") from None


class Budgets:
    """By model. Raises `BudgetError` if one is said twice."""

    def __init__(self, said: Iterable[tuple[str, Budget]] = ()) -> None:
        self._by_model: dict[str, Budget] = {}
        for name, budget in said:
            if name in self._by_model:
                raise BudgetError(f"the budget of {name} is said twice")
            self._by_model[name] = budget
        self._usual = self._by_model.get(EVERY, Budget())

    def of(self, model: str) -> Budget:
        return self._by_model.get(model, self._usual)

    @property
    def divide_time(self) -> bool:
        """Whether any of them says something about processor time: if so, all runners are put where it is divided."""
        return any(budget.divides_time for budget in self._by_model.values())
