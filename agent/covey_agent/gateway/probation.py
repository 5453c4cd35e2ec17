"""When a build in probation is taken back: pure.

The judge is told how each request went on the build in probation, and answers with the reason to go back, once there is one.
A failed inference counts only where the previous build answered the same request: if both fail, the request is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from covey_contract.histogram import Histogram, Recorder
from covey_contract.messages import Probation
from covey_contract.reasons import Reason
from covey_contract.strenum import StrEnum

P99 = 0.99
# Computing a quantile at every request would cost more than many an inference.
LATENCY_EVERY = 10
# An inference this many times slower than the previous build's p99 hangs, but never before HANG_FLOOR_S: a busy device stalls.
HANG_FACTOR = 50
HANG_FLOOR_S = 2.0


class Failing(StrEnum):
    """How a request failed. The values are the error codes of telemetry and of the gateway's answers."""

    ERROR = "inference_error"
    BAD_OUTPUT = "bad_output"
    LATE = "deadline"
    CRASHED = "runner_crashed"
    HUNG = "runner_hung"


REASONS = {
    Failing.CRASHED: Reason.RUNNER_CRASHED,
    Failing.HUNG: Reason.RUNNER_HUNG,
    Failing.BAD_OUTPUT: Reason.BAD_OUTPUT,
}


@dataclass(frozen=True)
class Verdict:
    """Go back."""

    reason: Reason
    detail: str


@dataclass
class Judge:
    """Of one build's probation. `answered` and `errors` count requests since the switch."""

    probation: Probation
    answered: int = 0
    errors: int = 0

    def answered_one(self) -> bool:
        """Count a request that the build answered; True when its latency is due to be judged."""
        self.answered += 1
        due = max(self.probation.min_requests, 1)
        return (
            self.probation.max_slowdown is not None
            and self.answered >= due
            and (self.answered - due) % LATENCY_EVERY == 0
        )

    def latency(self, now: Histogram, before: Histogram) -> Verdict | None:
        """`now`: compute since the switch; `before`: the previous build's. No verdict where either has too few requests."""
        limit, need = self.probation.max_slowdown, max(self.probation.min_requests, 1)
        if limit is None or now.count < need or before.count < need:
            return None
        slow, fast = now.quantile(P99), before.quantile(P99)
        if fast <= 0 or slow <= limit * fast:
            return None
        return Verdict(
            Reason.TOO_SLOW,
            f"p99 of compute {slow * 1e3:.2f} ms over {now.count} requests; the previous build's {fast * 1e3:.2f} ms, "
            f"allowed {limit:g} times",
        )

    def failed_one(self, how: Failing, detail: str) -> Verdict | None:
        """Count a request that the build failed."""
        self.errors += 1
        if how in REASONS:
            return Verdict(REASONS[how], detail)
        if self.errors > self.probation.max_errors:
            return Verdict(
                Reason.INFERENCE_ERRORS,
                f"{self.errors} failed inferences, {self.probation.max_errors} forgiven; the last: {detail}",
            )
        return None


def hang_after(limit_s: float, before: Histogram) -> float:
    """Seconds after which an inference of a build in probation counts as hanging, from the previous build's compute times."""
    if before.count == 0:
        return limit_s
    return min(max(HANG_FACTOR * before.quantile(P99), HANG_FLOOR_S), limit_s)


def patience(remaining_s: float) -> float:
    """How much of a request's time a build in probation may use up: the previous build needs the rest to answer in time."""
    return remaining_s / 2


class Trial:
    """The probation that the active build is in, if it is in one: what was seen of it since the switch.

    `hang_s`: how long an inference of the active build may take. `limit_s`: of one that is trusted."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._judge: Judge | None = None
        self._since_switch = Recorder()
        self.hang_s = limit_s

    def begin(self, probation: Probation | None, before: Recorder | None) -> None:
        """Another build serves; `before`: compute of the one that did, if there is a way back to it."""
        self._judge = Judge(probation) if probation is not None else None
        self._since_switch = Recorder()
        self.hang_s = self._limit_s if before is None else hang_after(self._limit_s, before.snapshot())

    def end(self) -> None:
        self._judge = None
        self.hang_s = self._limit_s

    @property
    def is_on(self) -> bool:
        return self._judge is not None

    @property
    def requests(self) -> int:
        return self._judge.answered if self._judge is not None else 0

    def answered(
        self, compute_s: float, previous: str | None, lifetime: Callable[[str | None], Recorder | None]
    ) -> Verdict | None:
        """The active build has answered; `lifetime`: compute of the previous one."""
        if self._judge is None:
            return None
        self._since_switch.record(compute_s)
        if self._judge.answered_one() and (before := lifetime(previous)) is not None:
            return self._judge.latency(self._since_switch.snapshot(), before.snapshot())
        return None

    def failed(self, how: Failing, detail: str) -> Verdict | None:
        """The active build has failed a request, which is not at fault itself."""
        return self._judge.failed_one(how, detail) if self._judge is not None else None
