"""The builds of one model that are held on the device, the runners that have them loaded, and which of them serves."""

from __future__ import annotations

import asyncio

from covey_agent.gateway.runner_process import BuildSpec, RunnerProcess
from covey_agent.gateway.slots import Slots


class Held:
    """`away`: the build whose runner was ended to make room for another; it is held all the same."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.away: str | None = None
        self.specs: dict[str, BuildSpec] = {}
        self._runners: dict[str, RunnerProcess] = {}
        self._ending: set[RunnerProcess] = set()

    def become(self, slots: Slots) -> None:
        """The one place where `slots` changes; runners of builds that are held no longer are retired."""
        dropped = self.slots.dropped(slots)
        self.slots = slots
        for build in dropped:
            self.specs.pop(build, None)
            runner = self._runners.pop(build, None)
            if runner is not None:
                self._ending.add(runner)
                runner.retire(quietly=slots.active is not None)
        self._ending = {runner for runner in self._ending if not runner.ended.is_set()}

    # --- runners ----------------------------------------------------------------------------------------------------

    def add(self, runner: RunnerProcess) -> None:
        """It begins to load its build."""
        self._runners[runner.spec.build] = runner

    def let_go(self, runner: RunnerProcess) -> bool:
        """It has ended or is to end; whether its build was its own until now."""
        self._ending.add(runner)
        if not self.has(runner):
            return False
        del self._runners[runner.spec.build]
        return True

    def has(self, runner: RunnerProcess) -> bool:
        return self._runners.get(runner.spec.build) is runner

    def runner(self, build: str) -> RunnerProcess | None:
        return self._runners.get(build)

    def ready(self, build: str | None) -> RunnerProcess | None:
        runner = self._runners.get(build) if build is not None else None
        return runner if runner is not None and runner.ready else None

    def target(self) -> RunnerProcess | None:
        """Who takes the next request: the active build, or the previous one while the active one is stuck."""
        active = self.ready(self.slots.active)
        if active is not None and active.stuck and (previous := self.ready(self.slots.previous)) is not None:
            return previous
        return active

    def runners(self) -> list[RunnerProcess]:
        """Also those that are ending."""
        return [*self._runners.values(), *(runner for runner in self._ending if not runner.ended.is_set())]

    async def ended(self) -> None:
        """Until none is ending."""
        await asyncio.gather(*(runner.ended.wait() for runner in self._ending))
