"""How one model answers requests: the line before its runners, and who is asked when a runner fails one.

A request goes to the active build's runner; one inference is in flight per runner, the others wait in line. In probation a request that the
new build fails is answered by the previous one. Without a way back a runner that died is started anew, while requests wait in line until
their deadlines.

A request that finds its runner free and nobody in line needs no task of its own (`begin`): it is asked at once, and told when it is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from covey_agent.gateway.batching import merged, parted, rows_of, together
from covey_agent.gateway.errors import (
    BY_FAILING,
    CrashedError,
    DeadlineError,
    InferenceError,
    NoBuildError,
    ServeError,
)
from covey_agent.gateway.held import Held
from covey_agent.gateway.line import Line, Ride, Turn
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.probation import Failing, Trial, Verdict, patience
from covey_agent.gateway.runner_process import BuildSpec, InferFailed, Reply, RunnerProcess
from covey_agent.gateway.settings import Limits
from covey_agent.gateway.stats import BuildStats, Statistics
from covey_contract.histogram import Recorder

log = logging.getLogger(__name__)

# A request that a runner failed is tried again: by the previous build, or by the runner started anew.
ATTEMPTS = 3


class Answer(NamedTuple):
    spec: BuildSpec  # the build that answered
    reply: Reply


# Called with the answer, or with what will give it where the runner that was asked has failed the request.
Done = Callable[[Answer | Awaitable[Answer]], None]


@dataclass(frozen=True)
class Failed:
    """A runner was asked for nothing. `may_fall_back`: there was a previous build to ask after it."""

    runner: RunnerProcess
    may_fall_back: bool
    failure: InferFailed


@dataclass(frozen=True)
class Strike:
    """A build in probation failed a request; it counts once another build has answered the same."""

    runner: RunnerProcess
    how: Failing
    detail: str


class Answering:
    """`obey` is told the verdict on the active build, when there is one. `clock` gives monotonic seconds, `now_ms` the Unix time."""

    def __init__(
        self,
        name: str,
        held: Held,
        trial: Trial,
        statistics: Statistics,
        *,
        limits: Limits,
        obey: Callable[[Verdict], None],
        clock: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._name = name
        self._held = held
        self._trial = trial
        self._statistics = statistics
        self._limits = limits
        self._obey = obey
        self._clock = clock
        self._now_ms = now_ms
        self._line = Line(limits.queue)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    # --- a request's ways -------------------------------------------------------------------------------------------

    def free(self) -> RunnerProcess | None:
        """The active build's runner, if a request could be asked now and need not wait."""
        runner = self._held.target()
        if runner is None or runner.busy or not self._line.is_empty or runner.spec.build != self._held.slots.active:
            return None
        return runner

    def begin(self, runner: RunnerProcess, request: InferRequest, arrived: float, deadline: float, done: Done) -> None:
        """Ask the runner, which is `free`, what fits its build; `done` is called later. `arrived`: now."""
        spec = runner.spec
        may_fall_back = self._may_fall_back(runner)

        def replied(outcome: Reply | InferFailed) -> None:
            if isinstance(outcome, InferFailed):
                done(self._rescue(request, Failed(runner, may_fall_back, outcome), deadline, arrived))
                return
            self._computed(runner, request, outcome)
            self._answered(self._stats_of(spec), arrived, queue_s=0.0, fallback=False)
            done(Answer(spec, outcome))

        runner.busy = True
        self._ask(runner, request, arrived, deadline, replied, may_fall_back=may_fall_back)

    def room(self, runner: RunnerProcess, size: int) -> memoryview | None:
        """Where the inputs of the request that the runner, which is `free`, is asked next may be read to. Not where another build may be asked
        the same: this one could have written over them."""
        return None if self._may_fall_back(runner) else runner.room(size)

    async def _rescue(self, request: InferRequest, failed: Failed, deadline: float, arrived: float) -> Answer:
        """What is left to do for a request that was begun; raises `ServeError`."""
        asked = failed.runner.spec
        try:
            answer = await self._answer(request, failed.runner, deadline, failed)
        except ServeError as error:
            self._stats_of(asked).failed(error.code)
            raise
        self._answered(self._stats_of(asked), arrived, queue_s=0.0, fallback=answer.spec.build != asked.build)
        return answer

    async def infer(self, request: InferRequest, asked: BuildSpec, deadline: float) -> Answer:
        """Answer the request before `deadline` (of `clock`), by whichever build can; raises `ServeError`. `asked`: the build that serves."""
        arrived = self._clock()
        queue_s = 0.0
        try:
            turn = await self._turn(request, deadline)
            queue_s = self._clock() - arrived
            if isinstance(turn, Ride):
                asked = turn.runner.spec
                answer = await self._ride(turn, request, deadline)
            else:
                asked = self._asked(turn)
                answer = await self._lead(request, turn, deadline)
        except ServeError as error:
            self._stats_of(asked).failed(error.code)
            raise
        self._answered(self._stats_of(asked), arrived, queue_s=queue_s, fallback=answer.spec.build != asked.build)
        return answer

    async def _lead(self, request: InferRequest, runner: RunnerProcess, deadline: float) -> Answer:
        """Answer the request, and others that wait for the same build with it."""
        manifest = runner.spec.manifest
        # In probation each request is judged alone, and so it is where a build has another's place.
        alone = manifest.max_batch == 1 or self._trial.is_on or self._line.is_empty or not request.fits(manifest)
        riders = [] if alone else self._line.take_along(runner, lambda waiting: together(request, waiting, manifest))
        if not riders:
            return await self._answer(request, runner, deadline)
        requests = [request, *(other for other, _ in riders)]
        replies: list[Reply] | None = None
        try:
            reply = await self._asked_for(runner, merged(requests), deadline, may_fall_back=False)
            replies = parted(reply, [rows_of(one) for one in requests])
        except InferFailed as failure:
            log.info(
                "%s: %d requests put together failed (%s); each is asked alone", self._name, len(requests), failure
            )
        finally:
            for index, (_, ride) in enumerate(riders, start=1):
                ride.reply.set_result(replies[index] if replies is not None else None)
        if replies is not None:
            return Answer(runner.spec, replies[0])
        return await self._again_alone(request, deadline)

    async def _ride(self, ride: Ride, request: InferRequest, deadline: float) -> Answer:
        remaining = max(deadline - self._clock(), 0.0)
        try:
            # Not cancelled with the one who waits: the one who leads still gives it.
            reply = await asyncio.wait_for(asyncio.shield(ride.reply), remaining)
        except asyncio.TimeoutError as error:
            raise DeadlineError("the model did not answer in the time there was") from error
        return Answer(ride.runner.spec, reply) if reply is not None else await self._again_alone(request, deadline)

    async def _again_alone(self, request: InferRequest, deadline: float) -> Answer:
        return await self._answer(request, await self._turn_again(request, deadline), deadline)

    async def _answer(
        self, request: InferRequest, runner: RunnerProcess, deadline: float, first: Failed | None = None
    ) -> Answer:
        """`first`: how the first attempt went, where it has been made."""
        strike: Strike | None = None
        for attempt in range(1, ATTEMPTS + 1):
            tried = first if attempt == 1 and first is not None else await self._try(request, runner, deadline)
            if isinstance(tried, Reply):
                if strike is not None and runner is not strike.runner:
                    self._count(strike)
                return Answer(runner.spec, tried)
            strike = self._consequence(tried, strike, last=attempt == ATTEMPTS)
            runner = await self._turn_again(request, deadline)
        raise InferenceError("the model failed on every attempt")

    async def _try(self, request: InferRequest, runner: RunnerProcess, deadline: float) -> Reply | Failed:
        if not request.fits(runner.spec.manifest):
            self._release(runner)
            raise NoBuildError(f"{self._name} has taken another signature while the request waited; ask again")
        may_fall_back = self._may_fall_back(runner)
        try:
            return await self._asked_for(runner, request, deadline, may_fall_back=may_fall_back)
        except InferFailed as failure:
            return Failed(runner, may_fall_back, failure)

    def _consequence(self, tried: Failed, strike: Strike | None, *, last: bool) -> Strike | None:
        """What a failed attempt counts, if the request is tried again; raises the `ServeError` that it ends with otherwise."""
        how, failure = tried.failure.how, tried.failure
        died = how in (Failing.CRASHED, Failing.HUNG)
        if strike is not None or not (tried.may_fall_back or died):
            if self._held.away is not None and how is not Failing.LATE:
                # The build before cannot be asked whether the request is at fault.
                self._count(Strike(tried.runner, how, str(failure)))
            raise BY_FAILING[how](str(failure)) from failure
        if not died:
            return Strike(tried.runner, how, str(failure))
        # A crash has been dealt with by who was told of it; whatever serves now is asked again.
        if last:
            raise CrashedError(str(failure)) from failure
        return None

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        runner: RunnerProcess,
        request: InferRequest,
        now: float,
        deadline: float,
        replied: Callable[[Reply | InferFailed], None],
        *,
        may_fall_back: bool,
    ) -> None:
        remaining_s = max(deadline - now, 0.0)
        hang_s = self._trial.hang_s if runner.spec.build == self._held.slots.active else self._limits.hang_s
        runner.ask(
            request, replied, now, patience_s=patience(remaining_s) if may_fall_back else remaining_s, hang_s=hang_s
        )

    async def _asked_for(
        self, runner: RunnerProcess, request: InferRequest, deadline: float, *, may_fall_back: bool
    ) -> Reply:
        """Raises `InferFailed`."""
        outcome: asyncio.Future[Reply | InferFailed] = asyncio.get_running_loop().create_future()

        def replied(told: Reply | InferFailed) -> None:
            if not outcome.done():  # its caller may have gone away
                outcome.set_result(told)

        self._ask(runner, request, self._clock(), deadline, replied, may_fall_back=may_fall_back)
        reply = await outcome
        if isinstance(reply, InferFailed):
            raise reply
        self._computed(runner, request, reply)
        return reply

    def _computed(self, runner: RunnerProcess, request: InferRequest, reply: Reply) -> None:
        spec, result = runner.spec, reply.result
        self._stats_of(spec).computed(result, rows_of(request) if spec.manifest.max_batch > 1 else 1)
        if self._trial.is_on and spec.build == self._held.slots.active:
            self._follow(self._trial.answered(result.compute_s, self._held.slots.previous, self.lifetime))

    def lifetime(self, build: str | None) -> Recorder | None:
        """Compute of a held build since it was loaded."""
        return self._stats_of(self._held.specs[build]).lifetime if build is not None else None

    def _answered(self, stats: BuildStats, arrived: float, *, queue_s: float, fallback: bool) -> None:
        stats.answered(queue_s=queue_s, end_to_end_s=self._clock() - arrived, fallback=fallback, now_ms=self._now_ms())

    def _stats_of(self, spec: BuildSpec) -> BuildStats:
        return self._statistics.of(spec.build, spec.manifest)

    def _asked(self, runner: RunnerProcess) -> BuildSpec:
        """The build that the request counts for: the active one also where the previous one stands in for it."""
        active = self._held.ready(self._held.slots.active)
        stands_in = runner.spec.build == self._held.slots.previous and active is not None and active.stuck
        return active.spec if active is not None and stands_in else runner.spec

    def _may_fall_back(self, runner: RunnerProcess) -> bool:
        slots = self._held.slots
        return (
            slots.previous is not None
            and runner.spec.build == slots.active
            and self._held.ready(slots.previous) is not None
        )

    def _count(self, strike: Strike) -> None:
        if strike.runner.spec.build == self._held.slots.active:
            self._follow(self._trial.failed(strike.how, strike.detail))

    def _follow(self, verdict: Verdict | None) -> None:
        if verdict is not None and self._held.slots.may_revert:
            self._obey(verdict)

    # --- the line ---------------------------------------------------------------------------------------------------

    async def _turn(self, request: InferRequest, deadline: float) -> RunnerProcess | Ride:
        """A free runner, marked busy for the caller, or a ride with another request."""
        if self._line.is_empty and (runner := self._held.target()) is not None and not runner.busy:
            runner.busy = True
            return runner
        return await self._wait(self._line.join(request, again=False), deadline)

    async def _turn_again(self, request: InferRequest, deadline: float) -> RunnerProcess:
        """As `_turn`, where the active build has failed this request, so that it goes first, alone, and prefers the previous one."""
        turn = await self._wait(self._line.join(request, again=True), deadline)
        assert isinstance(turn, RunnerProcess)  # noqa: S101  # who goes again is never taken along
        return turn

    async def _wait(self, turn: Turn, deadline: float) -> RunnerProcess | Ride:
        timer = asyncio.get_running_loop().call_later(max(deadline - self._clock(), 0.0), self._expire, turn)
        self.pump()
        try:
            return await turn
        finally:
            timer.cancel()

    def _expire(self, turn: Turn) -> None:
        serving = self._held.ready(self._held.slots.active) is not None
        waited_for = "its turn" if serving else "a runner, which is being started"
        self._line.expire(turn, DeadlineError(f"the request's time was over while it waited for {waited_for}"))

    def pump(self) -> None:
        """Give runners that are free to requests that wait."""
        slots = self._held.slots
        if slots.active is None:
            self._line.refuse_all(f"no build of {self._name} serves any longer")
        elif len(self._line):
            again = self._held.ready(slots.previous) or self._held.ready(slots.active)
            self._line.grant(again=again, new=self._held.target())

    def _release(self, runner: RunnerProcess) -> None:
        runner.busy = False
        if runner.draining:
            runner.retire()
        self.pump()
