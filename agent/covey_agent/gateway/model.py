"""One model on this device: its runners, the queue before them, the switch between two builds and the way back.

A request goes to the active build's runner; one inference is in flight per runner, the others wait in line. A switch is one
change of `slots`: requests in line go to the new build, the old runner finishes what it has. In probation a request that the
new build fails is answered by the previous one, and the verdict of `probation.Judge` may take the new build back. Without a way
back a runner that died is started anew, while requests wait in line until their deadlines. So they do where a build is loaded in the
place of the one that serves, because there is no memory for both; the way back is then to start that one again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from covey_agent.gateway.batching import merged, parted, rows_of, together
from covey_agent.gateway.control_api import Load, Loaded, ModelSlots, Reverted, RunnerStatus
from covey_agent.gateway.enclosure import Enclosure
from covey_agent.gateway.errors import (
    BY_FAILING,
    CrashedError,
    DeadlineError,
    InferenceError,
    NoBuildError,
    OrderError,
    ServeError,
)
from covey_agent.gateway.line import Line, Ride, Turn
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.probation import REASONS, Failing, Judge, Verdict, hang_after, patience
from covey_agent.gateway.runner_process import BuildSpec, InferFailed, Reply, RunnerProcess
from covey_agent.gateway.settings import Limits
from covey_agent.gateway.slots import SlotError, Slots
from covey_agent.gateway.stats import BuildStats, Statistics
from covey_contract.histogram import Recorder
from covey_contract.messages import BuildWindow, Probation
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

# A request that a runner failed is tried again: by the previous build, or by the runner started anew.
ATTEMPTS = 3
RESTART_TIMEOUT_S = 120.0
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A runner that lived this long had no trouble starting; the next restart need not wait.
HEALTHY_S = 60.0


@dataclass(frozen=True)
class Answer:
    spec: BuildSpec  # the build that answered
    reply: Reply


@dataclass(frozen=True)
class Strike:
    """A build in probation failed a request; it counts once another build has answered the same."""

    runner: RunnerProcess
    how: Failing
    detail: str


class Model:
    """`clock` gives monotonic seconds (the event loop's), `now_ms` the Unix time in milliseconds."""

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        enclosure: Enclosure,
        idle: Sequence[str],
        limits: Limits,
        clock: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self.name = name
        self.slots = Slots()
        self.statistics = Statistics()
        self._threads = threads
        self._enclosure = enclosure
        self._idle = idle
        self._limits = limits
        self._clock = clock
        self._now_ms = now_ms
        self._runners: dict[str, RunnerProcess] = {}
        self._ending: set[RunnerProcess] = set()
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._specs: dict[str, BuildSpec] = {}
        self._line = Line(limits.queue)
        self._judge: Judge | None = None
        self._lifetimes: dict[str, Recorder] = {}  # compute of each held build since it was loaded
        self._since_switch = Recorder()
        self._hang_s = limits.hang_s
        self._reverted: Reverted | None = None
        self._restart: asyncio.Task[None] | None = None
        self._restarts = 0
        self._restarted_at = float("-inf")
        self._away: str | None = None  # the held build whose runner was ended to make room for another
        self._patience: asyncio.TimerHandle | None = None

    # --- orders of the control process ------------------------------------------------------------------------------

    async def load(self, spec: BuildSpec, order: Load) -> Loaded:
        """Bring the build to ready, beside what serves; raises `OrderError`. Asking twice is harmless."""
        if spec.build == self.slots.active and self._restart is not None:
            _, waiting = await asyncio.wait([self._restart], timeout=order.timeout_s)
            if waiting:
                raise OrderError(Reason.LOAD_TIMEOUT, "the active build's runner has died and does not start again")
        runner = self._runners.get(spec.build)
        if runner is not None and runner.ready and runner.loaded is not None:
            return runner.loaded
        task = self._loading.get(spec.build)
        if task is None:
            task = self._loading[spec.build] = asyncio.create_task(self._load(spec, order))
        return await asyncio.shield(task)

    async def _load(self, spec: BuildSpec, order: Load) -> Loaded:
        try:
            self._specs[spec.build] = spec
            self._become(self.slots.with_candidate(spec.build))
            if order.in_place:
                await self._put_away()
            loaded = await self._start(
                spec, background=order.background, check_golden=order.check_golden, timeout_s=order.timeout_s
            )
            if self._away is not None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._limits.switch_s, self._no_switch, spec.build)
            return loaded
        except OrderError:
            if self.slots.candidate == spec.build:
                self._become(self.slots.without(spec.build))
            self._bring_back()
            raise
        finally:
            self._loading.pop(spec.build, None)

    async def _put_away(self) -> None:
        """End the runner that serves, once it has answered what it has, and wait for its memory."""
        runner = self._ready(self.slots.active)
        if runner is None:
            return
        log.info("%s: build %s makes room for another", self.name, runner.spec.build[:12])
        self._away = runner.spec.build
        del self._runners[runner.spec.build]
        self._ending.add(runner)
        runner.retire()
        await runner.ended.wait()

    def _bring_back(self) -> None:
        """The build that made room is to serve after all."""
        away, self._away = self._away, None
        if away is not None and away == self.slots.active and self._restart is None:
            self._restart = asyncio.create_task(self._start_anew(self._specs[away], in_place=True))

    def _no_switch(self, build: str) -> None:
        if self.slots.candidate == build:
            log.warning("%s: nobody lets build %s serve; the one before comes back", self.name, build[:12])
            self.unload(build)

    async def _start(self, spec: BuildSpec, *, background: bool, check_golden: bool, timeout_s: float) -> Loaded:
        runner = RunnerProcess(
            spec,
            threads=self._threads,
            enclosure=self._enclosure,
            idle=self._idle,
            retire_s=self._limits.retire_s,
            on_free=self._pump,
            on_lost=self._lost,
        )
        self._runners[spec.build] = runner
        self._lifetimes[spec.build] = Recorder()
        try:
            loaded = await runner.start(background=background, check_golden=check_golden, timeout_s=timeout_s)
        except OrderError:
            if self._runners.get(spec.build) is runner:
                del self._runners[spec.build]
            self._ending.add(runner)
            raise
        if self._runners.get(spec.build) is not runner:
            runner.kill()
            raise OrderError(Reason.SUPERSEDED, "another order came while the build was loading")
        log.info("%s: build %s is ready in runner %d", self.name, spec.build[:12], runner.pid)
        self._pump()
        return loaded

    def switch(self, build: str, probation: Probation | None) -> None:
        """Let the loaded build serve from the next request on; raises `OrderError`."""
        if build == self.slots.active:
            return
        runner = self._ready(build)
        if runner is None:
            raise OrderError(Reason.LOAD_FAILED, f"build {build[:12]} is not loaded, or its runner has died")
        before = self._ready(self.slots.active)
        try:
            slots = self.slots.switched(build, probation)
        except SlotError as error:
            raise OrderError(Reason.INTERNAL, str(error)) from error
        if before is None and slots.previous not in (None, self._away):  # it is being started anew: no way back to it
            slots = replace(slots, previous=None)
        if self._patience is not None:
            self._patience.cancel()
        if slots.previous != self._away:
            self._away = None
        self._judge = Judge(probation) if probation is not None else None
        self.stats_of(runner.spec).probation = probation is not None
        self._since_switch = Recorder()
        self._reverted = None
        self._restarts = 0
        self._hang_s = self._limits.hang_s
        if slots.previous is not None:
            self._hang_s = hang_after(self._limits.hang_s, self._lifetimes[slots.previous].snapshot())
        self._become(slots)
        log.info("%s: build %s serves", self.name, build[:12])
        self._pump()

    def settle(self) -> None:
        self._judge = self._away = None
        self._hang_s = self._limits.hang_s
        self._become(self.slots.settled())
        self._pump()

    def revert(self, reason: Reason, detail: str) -> None:
        """Let the previous build serve again; raises `OrderError` if none is active."""
        try:
            slots = self.slots.reverted()
        except SlotError as error:
            raise OrderError(Reason.INTERNAL, str(error)) from error
        log.warning("%s: build %s is taken back: %s %s", self.name, str(self.slots.active)[:12], reason, detail)
        self._judge = None
        self._hang_s = self._limits.hang_s
        self._become(slots)
        self._bring_back()
        self._pump()

    def unload(self, build: str | None) -> None:
        self._become(self.slots.without(build))
        if self.slots.active is None:
            self._judge = None
        if self.slots.candidate is None and self._judge is None:
            self._bring_back()
        self._pump()

    async def close(self) -> None:
        """End every runner, and wait until they are gone."""
        self.unload(None)
        await asyncio.gather(*(runner.ended.wait() for runner in self._ending))

    def kill(self) -> None:
        for runner in (*self._runners.values(), *self._ending):
            runner.kill()

    def _become(self, slots: Slots) -> None:
        """The one place where `slots` changes; runners of builds that are held no longer are retired."""
        dropped = self.slots.dropped(slots)
        self.slots = slots
        for build in dropped:
            self._specs.pop(build, None)
            self._lifetimes.pop(build, None)
            runner = self._runners.pop(build, None)
            if runner is not None:
                self._ending.add(runner)
                runner.retire(quietly=slots.active is not None)
        self._ending = {runner for runner in self._ending if not runner.ended.is_set()}
        self.statistics.forget_old(slots.builds)

    # --- requests ---------------------------------------------------------------------------------------------------

    def active_spec(self) -> BuildSpec:
        """The build that serves; raises `NoBuildError` with the reason why none does."""
        if self.slots.active is None:
            if self._reverted is not None:
                raise NoBuildError(f"no build of {self.name} serves: {self._reverted.reason} ({self._reverted.detail})")
            raise NoBuildError(f"no build of {self.name} serves yet")
        return self._specs[self.slots.active]

    @property
    def is_serving(self) -> bool:
        return self._ready(self.slots.active) is not None

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def stats_of(self, spec: BuildSpec) -> BuildStats:
        return self.statistics.of(spec.build, spec.manifest)

    async def infer(self, request: InferRequest, deadline: float) -> Answer:
        """Answer the request before `deadline` (of `clock`), by whichever build can; raises `ServeError`."""
        arrived = self._clock()
        asked = self.active_spec()
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
            self.stats_of(asked).failed(error.code)
            raise
        self.stats_of(asked).answered(
            queue_s=queue_s,
            end_to_end_s=self._clock() - arrived,
            fallback=answer.spec.build != asked.build,
            now_ms=self._now_ms(),
        )
        return answer

    async def _lead(self, request: InferRequest, runner: RunnerProcess, deadline: float) -> Answer:
        """Answer the request, and others that wait for the same build with it."""
        manifest = runner.spec.manifest
        # In probation each request is judged alone, and so it is where a build has another's place.
        alone = manifest.max_batch == 1 or self._judge is not None or self._line.is_empty or not request.fits(manifest)
        riders = [] if alone else self._line.take_along(runner, lambda waiting: together(request, waiting, manifest))
        if not riders:
            return await self._answer(request, runner, deadline)
        requests = [request, *(other for other, _ in riders)]
        replies: list[Reply] | None = None
        try:
            reply = await self._ask(runner, merged(requests), deadline, may_fall_back=False)
            replies = parted(reply, [rows_of(one) for one in requests])
        except InferFailed as failure:
            log.info("%s: %d requests put together failed (%s); each is asked alone", self.name, len(requests), failure)
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
        turn = await self._turn(request, deadline, again=True)
        assert isinstance(turn, RunnerProcess)  # noqa: S101  # who goes again is never taken along
        return await self._answer(request, turn, deadline)

    async def _answer(self, request: InferRequest, runner: RunnerProcess, deadline: float) -> Answer:
        strike: Strike | None = None
        for attempt in range(ATTEMPTS):
            if not request.fits(runner.spec.manifest):
                self._release(runner)
                raise NoBuildError(f"{self.name} has taken another signature while the request waited; ask again")
            may_fall_back = self._may_fall_back(runner)
            try:
                reply = await self._ask(runner, request, deadline, may_fall_back=may_fall_back)
            except InferFailed as failure:
                if strike is not None or not (may_fall_back or failure.how in (Failing.CRASHED, Failing.HUNG)):
                    if self._away is not None and failure.how is not Failing.LATE:
                        # The build before cannot be asked whether the request is at fault.
                        self._count(Strike(runner, failure.how, str(failure)))
                    raise BY_FAILING[failure.how](str(failure)) from failure
                # A crash has been dealt with by `_lost`; whatever serves now is asked again.
                if failure.how not in (Failing.CRASHED, Failing.HUNG):
                    strike = Strike(runner, failure.how, str(failure))
                elif attempt + 1 == ATTEMPTS:
                    raise CrashedError(str(failure)) from failure
                turn = await self._turn(request, deadline, again=True)
                assert isinstance(turn, RunnerProcess)  # noqa: S101  # as above
                runner = turn
                continue
            if strike is not None and runner is not strike.runner:
                self._count(strike)
            return Answer(runner.spec, reply)
        raise InferenceError("the model failed on every attempt")

    async def _ask(
        self, runner: RunnerProcess, request: InferRequest, deadline: float, *, may_fall_back: bool
    ) -> Reply:
        remaining = max(deadline - self._clock(), 0.0)
        reply = await runner.infer(
            request,
            patience_s=patience(remaining) if may_fall_back else remaining,
            hang_s=self._hang_s if runner.spec.build == self.slots.active else self._limits.hang_s,
        )
        compute_s = reply.result.compute_s
        self.stats_of(runner.spec).computed(reply.result, rows_of(request))
        if (lifetime := self._lifetimes.get(runner.spec.build)) is not None:
            lifetime.record(compute_s)
        if self._judge is not None and runner.spec.build == self.slots.active:
            self._since_switch.record(compute_s)
            if self._judge.answered_one() and self.slots.previous is not None:
                before = self._lifetimes[self.slots.previous].snapshot()
                self._obey(self._judge.latency(self._since_switch.snapshot(), before))
        return reply

    def _asked(self, runner: RunnerProcess) -> BuildSpec:
        """The build that the request counts for: the active one also where the previous one stands in for it."""
        active = self._ready(self.slots.active)
        stands_in = runner.spec.build == self.slots.previous and active is not None and active.stuck
        return active.spec if active is not None and stands_in else runner.spec

    def _may_fall_back(self, runner: RunnerProcess) -> bool:
        return runner.spec.build == self.slots.active and self._ready(self.slots.previous) is not None

    def _count(self, strike: Strike) -> None:
        if self._judge is not None and strike.runner.spec.build == self.slots.active:
            self._obey(self._judge.failed_one(strike.how, strike.detail))

    def _obey(self, verdict: Verdict | None) -> None:
        if verdict is not None and self.slots.may_revert:
            self._go_back(verdict.reason, verdict.detail)

    # --- the line ---------------------------------------------------------------------------------------------------

    async def _turn(self, request: InferRequest, deadline: float, *, again: bool = False) -> RunnerProcess | Ride:
        """A free runner, marked busy for the caller, or a ride with another request. `again`: the active build has failed this request,
        so it goes first, alone, and prefers the previous one."""
        if not again and self._line.is_empty and (runner := self._target()) is not None and not runner.busy:
            runner.busy = True
            return runner
        turn = self._line.join(request, again=again)
        timer = asyncio.get_running_loop().call_later(max(deadline - self._clock(), 0.0), self._expire, turn)
        self._pump()
        try:
            return await turn
        finally:
            timer.cancel()

    def _expire(self, turn: Turn) -> None:
        waited_for = "its turn" if self.is_serving else "a runner, which is being started"
        self._line.expire(turn, DeadlineError(f"the request's time was over while it waited for {waited_for}"))

    def _target(self) -> RunnerProcess | None:
        """Who takes the next request: the active build, or the previous one while the active one is stuck."""
        active, previous = self._ready(self.slots.active), self._ready(self.slots.previous)
        return previous if active is not None and active.stuck and previous is not None else active

    def _pump(self) -> None:
        """Give runners that are free to requests that wait."""
        if self.slots.active is None:
            self._line.refuse_all(f"no build of {self.name} serves any longer")
            return
        again = self._ready(self.slots.previous) or self._ready(self.slots.active)
        self._line.grant(again=again, new=self._target())

    def _release(self, runner: RunnerProcess) -> None:
        runner.busy = False
        if runner.draining:
            runner.retire()
        self._pump()

    def _ready(self, build: str | None) -> RunnerProcess | None:
        runner = self._runners.get(build) if build is not None else None
        return runner if runner is not None and runner.ready else None

    # --- losses -----------------------------------------------------------------------------------------------------

    def _lost(self, runner: RunnerProcess, how: Failing, detail: str) -> None:
        build = runner.spec.build
        if self._runners.get(build) is not runner:
            return
        del self._runners[build]
        self._ending.add(runner)
        if build != self.slots.active:
            self._become(self.slots.without(build))
        elif self.slots.may_revert:
            self._go_back(REASONS[how], detail)
        else:
            self._restart = asyncio.create_task(self._start_anew(runner.spec))
        self._pump()

    def _go_back(self, reason: Reason, detail: str) -> None:
        build, to = self.slots.active, self.slots.previous
        if build is None:
            return
        self._reverted = Reverted(build=build, to=to, reason=reason, detail=detail, time_ms=self._now_ms())
        self.revert(reason, detail)

    async def _start_anew(self, spec: BuildSpec, *, in_place: bool = False) -> None:
        """Until the active build serves again, or another takes its place. `in_place`: there is no memory for it beside another."""
        if self._clock() - self._restarted_at > HEALTHY_S:
            self._restarts = 0
        try:
            if in_place:
                await asyncio.gather(*(runner.ended.wait() for runner in self._ending))
            while self.slots.active == spec.build:
                await asyncio.sleep(RESTART_DELAYS_S[min(self._restarts, len(RESTART_DELAYS_S) - 1)])
                self._restarts += 1
                self._restarted_at = self._clock()
                if self.slots.active != spec.build:
                    return
                try:
                    await self._start(spec, background=False, check_golden=False, timeout_s=RESTART_TIMEOUT_S)
                except OrderError as error:
                    log.warning("%s: build %s does not start again: %s", self.name, spec.build[:12], error)
                else:
                    return
        finally:
            self._restart = None

    # --- what is told to control ------------------------------------------------------------------------------------

    def status(self) -> ModelSlots:
        runners = [*self._runners.values(), *(runner for runner in self._ending if not runner.ended.is_set())]
        return ModelSlots(
            model=self.name,
            active=self.slots.active,
            previous=self.slots.previous,
            candidate=self.slots.candidate,
            runners=tuple(
                RunnerStatus(
                    build=runner.spec.build,
                    pid=runner.pid,
                    state="serving" if self._ready(self.slots.active) is runner else runner.state,
                    rss_mb=runner.rss_mb(),
                )
                for runner in runners
            ),
            in_probation=self.slots.probation is not None,
            probation_requests=self._judge.answered if self._judge is not None else 0,
            reverted=self._reverted,
        )

    def runners_rss_mb(self) -> float:
        return sum(runner.rss_mb() for runner in (*self._runners.values(), *self._ending))

    def collect(self) -> list[BuildWindow]:
        in_probation = self.slots.active if self.slots.probation is not None else None
        return self.statistics.take(held=self.slots.builds, in_probation=in_probation)
