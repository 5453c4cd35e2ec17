"""How often each rule halts a group in which installs fail at a known rate: exact, by counting through all orders of outcomes.

State by state: after k devices, the probability of each number of failures among groups that have not been halted yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from covey_server.core.eprocess import binomial

GROUP = 50
RATES = (0.01, 0.05, 0.20)
BASE_RATE = 0.01
ALPHA = 0.01

# (failed, ended, devices of the group) -> whether to halt.
Rule = Callable[[int, int, int], bool]

RULES: dict[str, Rule] = {
    "covey_e_process": lambda failed, ended, _: binomial.log_e_value(failed, ended, BASE_RATE) >= math.log(1 / ALPHA),
    "covey_e_process_whole_stage": lambda failed, _, group: (
        binomial.log_e_value(failed, group, BASE_RATE) >= math.log(1 / ALPHA)
    ),
    "hawkbit_5pct_of_group": lambda failed, _, group: failed > 0.05 * group,
    "azure_5pct_and_10_failed": lambda failed, _, group: failed > 0.05 * group and failed >= 10,
    "aws_5pct_of_10": lambda failed, ended, _: ended >= 10 and failed >= 0.05 * ended,
}


def halting_probability(rule: Rule, rate: float, group: int = GROUP) -> float:
    alive, halted = {0: 1.0}, 0.0
    for ended in range(1, group + 1):
        after: dict[int, float] = {}
        for failed, weight in alive.items():
            after[failed] = after.get(failed, 0.0) + weight * (1 - rate)
            after[failed + 1] = after.get(failed + 1, 0.0) + weight * rate
        stopped = [failed for failed in after if rule(failed, ended, group)]
        halted += sum(after.pop(failed) for failed in stopped)
        alive = after
    return halted


def table() -> dict[str, dict[str, float]]:
    """By rule and true rate."""
    return {
        name: {f"{rate:g}": round(halting_probability(rule, rate), 5) for rate in RATES} for name, rule in RULES.items()
    }
