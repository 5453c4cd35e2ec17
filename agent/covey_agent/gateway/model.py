"""One model on this device: what control orders of its builds, and what becomes of them.

A switch is one change of `slots`: requests in line go to the new build, the old runner finishes what it has. In probation the verdict of
`probation.Judge` may take the new build back. Without a way back a runner that died is started anew. Where a build is loaded in the
place of the one that serves, because there is no memory for both, the way back is to start that one again. How requests are answered
meanwhile: `answering`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from covey_agent.gateway.answering import Answer, Answering, Done
from covey_agent.gateway.control_api import Load, Loaded, ModelSlots, Reverted, RunnerStatus
from covey_agent.gateway.enclosure import Enclosure
from covey_agent.gateway.errors import NoBuildError, OrderError
from covey_agent.gateway.held import Held
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.probation import REASONS, Failing, Trial, Verdict
from covey_agent.gateway.runner_process import BuildSpec, RunnerProcess
from covey_agent.gateway.settings import Limits
from covey_agent.gateway.slots import SlotError, Slots
from covey_agent.gateway.stats import BuildStats, Statistics
from covey_contract.messages import BuildWindow, Probation
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

RESTART_TIMEOUT_S = 120.0
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A runner that lived this long had no trouble starting; the next restart need not wait.
HEALTHY_S = 60.0


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
        self.statistics = Statistics()
        self._threads = threads
        self._enclosure = enclosure
        self._idle = idle
        self._limits = limits
        self._clock = clock
        self._now_ms = now_ms
        self._held = Held()
        self._trial = Trial(limits.hang_s)
        self._answering = Answering(
            name,
            self._held,
            self._trial,
            self.statistics,
            limits=limits,
            obey=self._obey,
            clock=clock,
            now_ms=now_ms,
        )
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._reverted: Reverted | None = None
        self._restart: asyncio.Task[None] | None = None
        self._restarts = 0
        self._restarted_at = float("-inf")
        self._patience: asyncio.TimerHandle | None = None

    # --- orders of the control process ------------------------------------------------------------------------------

    async def load(self, spec: BuildSpec, order: Load) -> Loaded:
        """Bring the build to ready, beside what serves; raises `OrderError`. Asking twice is harmless."""
        if spec.build == self._held.slots.active and self._restart is not None:
            _, waiting = await asyncio.wait([self._restart], timeout=order.timeout_s)
            if waiting:
                raise OrderError(Reason.LOAD_TIMEOUT, "the active build's runner has died and does not start again")
        runner = self._held.runner(spec.build)
        if runner is not None and runner.ready and runner.loaded is not None:
            return runner.loaded
        task = self._loading.get(spec.build)
        if task is None:
            task = self._loading[spec.build] = asyncio.create_task(self._load(spec, order))
        return await asyncio.shield(task)

    async def _load(self, spec: BuildSpec, order: Load) -> Loaded:
        try:
            self._held.specs[spec.build] = spec
            self._become(self._held.slots.with_candidate(spec.build))
            if order.in_place:
                await self._put_away()
            loaded = await self._start(
                spec, background=order.background, check_golden=order.check_golden, timeout_s=order.timeout_s
            )
            if self._held.away is not None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._limits.switch_s, self._no_switch, spec.build)
            return loaded
        except OrderError:
            if self._held.slots.candidate == spec.build:
                self._become(self._held.slots.without(spec.build))
            self._bring_back()
            raise
        finally:
            self._loading.pop(spec.build, None)

    async def _put_away(self) -> None:
        """End the runner that serves, once it has answered what it has, and wait for its memory."""
        runner = self._held.ready(self._held.slots.active)
        if runner is None:
            return
        log.info("%s: build %s makes room for another", self.name, runner.spec.build[:12])
        self._held.away = runner.spec.build
        self._held.let_go(runner)
        runner.retire()
        await runner.ended.wait()

    def _bring_back(self) -> None:
        """The build that made room is to serve after all."""
        away, self._held.away = self._held.away, None
        if away is not None and away == self._held.slots.active and self._restart is None:
            self._restart = asyncio.create_task(self._start_anew(self._held.specs[away], in_place=True))

    def _no_switch(self, build: str) -> None:
        if self._held.slots.candidate == build:
            log.warning("%s: nobody lets build %s serve; the one before comes back", self.name, build[:12])
            self.unload(build)

    async def _start(self, spec: BuildSpec, *, background: bool, check_golden: bool, timeout_s: float) -> Loaded:
        runner = RunnerProcess(
            spec,
            threads=self._threads,
            enclosure=self._enclosure,
            idle=self._idle,
            retire_s=self._limits.retire_s,
            on_free=self._answering.pump,
            on_lost=self._lost,
        )
        self._held.add(runner)
        self.stats_of(spec).loaded()
        try:
            loaded = await runner.start(background=background, check_golden=check_golden, timeout_s=timeout_s)
        except OrderError:
            self._held.let_go(runner)
            raise
        if not self._held.has(runner):
            runner.kill()
            raise OrderError(Reason.SUPERSEDED, "another order came while the build was loading")
        log.info("%s: build %s is ready in runner %d", self.name, spec.build[:12], runner.pid)
        self._answering.pump()
        return loaded

    def switch(self, build: str, probation: Probation | None) -> None:
        """Let the loaded build serve from the next request on; raises `OrderError`."""
        if build == self._held.slots.active:
            return
        runner = self._held.ready(build)
        if runner is None:
            raise OrderError(Reason.LOAD_FAILED, f"build {build[:12]} is not loaded, or its runner has died")
        before = self._held.ready(self._held.slots.active)
        try:
            slots = self._held.slots.switched(build, probation)
        except SlotError as error:
            raise OrderError(Reason.INTERNAL, str(error)) from error
        if before is None and slots.previous not in (
            None,
            self._held.away,
        ):  # it is being started anew: no way back to it
            slots = replace(slots, previous=None)
        if self._patience is not None:
            self._patience.cancel()
        if slots.previous != self._held.away:
            self._held.away = None
        self._trial.begin(probation, self._answering.lifetime(slots.previous))
        self.stats_of(runner.spec).probation = probation is not None
        self._reverted = None
        self._restarts = 0
        self._become(slots)
        log.info("%s: build %s serves", self.name, build[:12])
        self._answering.pump()

    def settle(self) -> None:
        self._held.away = None
        self._trial.end()
        self._become(self._held.slots.settled())
        self._answering.pump()

    def revert(self, reason: Reason, detail: str) -> None:
        """Let the previous build serve again; raises `OrderError` if none is active."""
        try:
            slots = self._held.slots.reverted()
        except SlotError as error:
            raise OrderError(Reason.INTERNAL, str(error)) from error
        log.warning("%s: build %s is taken back: %s %s", self.name, str(self._held.slots.active)[:12], reason, detail)
        self._trial.end()
        self._become(slots)
        self._bring_back()
        self._answering.pump()

    def unload(self, build: str | None) -> None:
        self._become(self._held.slots.without(build))
        if self._held.slots.active is None:
            self._trial.end()
        if self._held.slots.candidate is None and not self._trial.is_on:
            self._bring_back()
        self._answering.pump()

    async def close(self) -> None:
        """End every runner, and wait until they are gone."""
        self.unload(None)
        await self._held.ended()

    def kill(self) -> None:
        for runner in self._held.runners():
            runner.kill()

    def _become(self, slots: Slots) -> None:
        self._held.become(slots)
        self.statistics.forget_old(slots.builds)

    # --- requests ---------------------------------------------------------------------------------------------------

    def active_spec(self) -> BuildSpec:
        """The build that serves; raises `NoBuildError` with the reason why none does."""
        active = self._held.slots.active
        if active is None:
            if self._reverted is not None:
                raise NoBuildError(f"no build of {self.name} serves: {self._reverted.reason} ({self._reverted.detail})")
            raise NoBuildError(f"no build of {self.name} serves yet")
        return self._held.specs[active]

    @property
    def slots(self) -> Slots:
        return self._held.slots

    @property
    def is_serving(self) -> bool:
        return self._held.ready(self._held.slots.active) is not None

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._answering.waiting

    def stats_of(self, spec: BuildSpec) -> BuildStats:
        return self.statistics.of(spec.build, spec.manifest)

    def free(self) -> RunnerProcess | None:
        """See `Answering.free`."""
        return self._answering.free()

    def begin(self, runner: RunnerProcess, request: InferRequest, arrived: float, deadline: float, done: Done) -> None:
        """See `Answering.begin`."""
        self._answering.begin(runner, request, arrived, deadline, done)

    def room(self, runner: RunnerProcess, size: int) -> memoryview | None:
        """See `Answering.room`."""
        return self._answering.room(runner, size)

    async def infer(self, request: InferRequest, deadline: float) -> Answer:
        """Answer the request before `deadline` (of `clock`), by whichever build can; raises `ServeError`."""
        return await self._answering.infer(request, self.active_spec(), deadline)

    # --- losses -----------------------------------------------------------------------------------------------------

    def _lost(self, runner: RunnerProcess, how: Failing, detail: str) -> None:
        build = runner.spec.build
        if not self._held.let_go(runner):
            return
        if build != self._held.slots.active:
            self._become(self._held.slots.without(build))
        elif self._held.slots.may_revert:
            self._go_back(REASONS[how], detail)
        else:
            self._restart = asyncio.create_task(self._start_anew(runner.spec))
        self._answering.pump()

    def _obey(self, verdict: Verdict) -> None:
        self._go_back(verdict.reason, verdict.detail)

    def _go_back(self, reason: Reason, detail: str) -> None:
        build, to = self._held.slots.active, self._held.slots.previous
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
                await self._held.ended()
            while self._held.slots.active == spec.build:
                await asyncio.sleep(RESTART_DELAYS_S[min(self._restarts, len(RESTART_DELAYS_S) - 1)])
                self._restarts += 1
                self._restarted_at = self._clock()
                if self._held.slots.active != spec.build:
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
        return ModelSlots(
            model=self.name,
            active=self._held.slots.active,
            previous=self._held.slots.previous,
            candidate=self._held.slots.candidate,
            runners=tuple(
                RunnerStatus(
                    build=runner.spec.build,
                    pid=runner.pid,
                    state="serving" if self._held.ready(self._held.slots.active) is runner else runner.state,
                    rss_mb=runner.rss_mb(),
                )
                for runner in self._held.runners()
            ),
            in_probation=self._held.slots.probation is not None,
            probation_requests=self._trial.requests,
            reverted=self._reverted,
        )

    def runners_rss_mb(self) -> float:
        return sum(runner.rss_mb() for runner in self._held.runners())

    def collect(self) -> list[BuildWindow]:
        in_probation = self._held.slots.active if self._held.slots.probation is not None else None
        return self.statistics.take(held=self._held.slots.builds, in_probation=in_probation)
