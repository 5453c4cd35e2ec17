"""What is said of a model's budget is understood, or refused with one line that says what is wrong."""

from __future__ import annotations

import pytest

from covey_agent.gateway.budget import Budget, BudgetError, Budgets, Priority, parse


def test_all_that_can_be_said() -> None:
    name, budget = parse("digits:memory=600,cpus=1.5,priority=high,threads=2")
    assert name == "digits"
    assert budget == Budget(memory_bytes=600_000_000, cpus=1.5, priority=Priority.HIGH, threads=2)
    assert parse("*: cpus=0.5") == ("*", Budget(cpus=0.5))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is not NAME:KEY=VALUE"),
        ("digits", "is not NAME:KEY=VALUE"),
        ("digits:", "is not NAME:KEY=VALUE"),
        ("../digits:cpus=1", "not the name of a model"),
        ("digits:speed=1", "'speed' is none of"),
        ("digits:cpus=1,cpus=2", "cpus is said twice"),
        ("digits:cpus=0", "cpus=0 is not a number from"),
        ("digits:cpus=nan", "cpus=nan is not a number from"),
        ("digits:cpus=lots", "cpus=lots is not a number from"),
        ("digits:memory=-5", "memory=-5 is not a number from"),
        ("digits:memory=", "memory= is not a number from"),
        ("digits:threads=1e9", "threads=1e9 is not a number from"),
        ("digits:priority=highest", "none of low, normal, high"),
    ],
)
def test_what_cannot_be_meant(text: str, word: str) -> None:
    with pytest.raises(BudgetError, match="^[^\n]*$") as caught:
        parse(text)
    assert word in str(caught.value)


def test_a_model_has_its_own_or_that_of_every_other() -> None:
    budgets = Budgets([parse("*:memory=100"), parse("digits:cpus=1")])
    assert budgets.of("digits") == Budget(cpus=1.0)
    assert budgets.of("letters") == Budget(memory_bytes=100_000_000)
    assert budgets.divide_time
    assert Budgets().of("digits") == Budget()
    assert not Budgets([parse("*:memory=100")]).divide_time
    with pytest.raises(BudgetError, match="said twice"):
        Budgets([parse("digits:cpus=1"), parse("digits:cpus=1")])


@pytest.mark.parametrize(
    ("budget", "threads"), [(Budget(), 4), (Budget(cpus=1.5), 2), (Budget(cpus=0.2), 1), (Budget(cpus=1, threads=3), 3)]
)
def test_threads_are_no_more_than_the_time_allows(budget: Budget, threads: int) -> None:
    assert budget.threads_of(4) == threads
