"""The probation that the active build is in, if it is in one: what was seen of it since the switch."""

from __future__ import annotations

from collections.abc import Callable

from covey_agent.gateway.probation import Failing, Judge, Verdict, hang_after
from covey_contract.histogram import Recorder
from covey_contract.messages import Probation


class Trial:
    """`hang_s`: how long an inference of the active build may take. `limit_s`: of one that is trusted."""

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
