"""From a verified build to the one that serves, or back: wait, load, switch, judge, and keep. One act for each of these states."""

from __future__ import annotations

import logging
from collections.abc import Callable

from covey_agent.book import Book
from covey_agent.core.conditions import Surroundings, Wait, binding, waits_for
from covey_agent.core.lifecycle import Event, may_retry
from covey_agent.core.state import Deployment, ModelRecord
from covey_agent.core.swap import Memory, SwapMode, choose
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import GatewayStatus, ModelSlots, Switch
from covey_agent.jobs import Finished, Jobs, Key
from covey_agent.orders import OrderFolder
from covey_agent.serving import Serving
from covey_agent.settings import Settings
from covey_agent.store import CorruptError
from covey_agent.transitions import Present, Transitions
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

LOAD = "load"
# What a deployment waits for may change every second; it is stored and told no more often than this.
_TELL_WAIT_MS = 10_000
# What says nothing about the build itself: the start is tried again, up to the limit.
_TRY_AGAIN = frozenset({Reason.RUNNER_CRASHED, Reason.RUNNER_HUNG, Reason.LOAD_TIMEOUT})


class Trial:
    """`surroundings` is asked when an order has conditions; `memory` gives the available MB; `passed` is told when a build has become
    the active one."""

    def __init__(
        self,
        settings: Settings,
        present: Present,
        transitions: Transitions,
        *,
        book: Book,
        serving: Serving,
        jobs: Jobs,
        orders: OrderFolder,
        surroundings: Callable[[int, int, GatewayStatus | None], Surroundings],
        memory: Callable[[], float],
        clock: Callable[[], int],
        passed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._present = present
        self._move = transitions.move
        self._book = book
        self._serving = serving
        self._jobs = jobs
        self._orders = orders
        self._surroundings = surroundings
        self._memory = memory
        self._clock = clock
        self._passed = passed
        self._judge_until: dict[int, float] = {}  # by the order's counter

    # --- wait -------------------------------------------------------------------------------------------------------

    def wait_to_load(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """Until the order's conditions hold and the gateway can take a candidate. Raises `StepError`, `OSError`."""
        if deployment.starts >= self._settings.max_starts:
            detail = f"started {deployment.starts} times ({deployment.detail}); not again until a newer assignment"
            raise StepError(Reason.QUARANTINED, detail)
        self._serving.reconcile(model, self._present.now)
        if (wait := self._waits_for(deployment)) is not None:
            self._hold(model, deployment, wait)
        elif self._serving.ready_for_candidate(model, record):
            self._move(model, Event.WARM)

    def _waits_for(self, deployment: Deployment) -> Wait | None:
        """What holds the build up; raises `StepError` once its order has expired over it."""
        conditions = binding(deployment.order)
        if conditions is None:
            return None
        here = self._surroundings(self._clock(), self._book.state.time_floor_ms, self._serving.status)
        wait = waits_for(conditions, here)
        if here.now_ms >= deployment.order.expires_ms:
            why = wait.detail if wait is not None else "while its conditions did not hold"
            raise StepError(Reason.EXPIRED, f"the order expired before the device might follow it: {why}")
        return wait

    def _hold(self, model: str, deployment: Deployment, wait: Wait) -> None:
        told = (deployment.reason, deployment.waits_until_ms)
        since = abs(self._clock() - deployment.since_ms)  # the clock may have been set back
        if told != (wait.reason, wait.until_ms) and (not deployment.waiting or since >= _TELL_WAIT_MS):
            self._move(model, Event.HELD, wait.reason, wait.detail, wait.until_ms)

    # --- load -------------------------------------------------------------------------------------------------------

    def load(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """The build's bytes are read again and a runner warms up with them, in the jobs' thread. Raises `StepError`, `OSError`."""
        slots = self._serving.slots(model)
        mine = [one for one in (slots.runners if slots else ()) if one.build == deployment.build]
        if slots is not None and slots.candidate == deployment.build and any(one.state == "ready" for one in mine):
            self._move(model, Event.LOADED)
            return
        self._serving.reconcile(model, self._present.now)
        if not any(one.state == "loading" for one in mine) and self._serving.ready_for_candidate(model, record):
            in_place = record.active is not None and self._swap_mode(slots, deployment) is SwapMode.SEQUENTIAL
            beside = record.active is not None and not in_place
            self._jobs.submit(
                Key(model, LOAD, deployment.build, deployment.order.counter),
                lambda: self._serving.load(model, deployment.build, background=beside, in_place=in_place),
            )

    def _swap_mode(self, slots: ModelSlots | None, deployment: Deployment) -> SwapMode:
        """Beside the build that serves or in its place, by what the build's runner took where it was built, or what that one takes."""
        measured = self._orders.manifest(deployment.order)[0].memory_mb
        serving = [one.rss_mb for one in (slots.runners if slots is not None else ()) if one.state == "serving"]
        needed = measured or (serving[0] if serving else None)
        mode = choose(self._settings.swap, Memory(needed, self._memory(), self._settings.memory_margin_mb))
        if mode is SwapMode.SEQUENTIAL:
            log.info("%s: %s in place of the build that serves", deployment.order.model, deployment.build[:12])
        return mode

    def loaded(self, model: str, deployment: Deployment, finished: Finished) -> None:
        """Raises `StepError` where the deployment is to fail over it, and `OSError`."""
        self._serving.refresh()
        trouble = finished.trouble
        if trouble is None:
            self._move(model, Event.LOADED)
        elif isinstance(trouble, GatewayError) or (isinstance(trouble, StepError) and trouble.reason in _TRY_AGAIN):
            last = deployment.starts >= self._settings.max_starts
            if last and isinstance(trouble, StepError):
                raise StepError(trouble.reason, f"{trouble.detail}; tried {deployment.starts} times")
            self._move(model, Event.INTERRUPTED, detail=str(trouble))
        elif isinstance(trouble, CorruptError):
            raise StepError(Reason.DIGEST_MISMATCH, str(trouble))
        else:
            raise trouble

    # --- switch and judge -------------------------------------------------------------------------------------------

    def judge(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """Switch if that is not done yet; then wait for the end of probation, or for the gateway to go back. Raises `OSError`."""
        del record
        if self._serving.status is None:
            return
        slots, build = self._serving.slots(model), deployment.build
        reverted = slots.reverted if slots is not None else None
        if slots is not None and slots.active == build:
            self._wait_for_end_of_probation(model, deployment)
        elif slots is not None and slots.candidate == build:
            if self._serving.ask(Switch(model=model, build=build, probation=deployment.order.probation)):
                seconds = deployment.order.probation.seconds
                self._judge_until[deployment.order.counter] = self._present.now + seconds
        elif reverted is not None and reverted.build == build and self._is_of_now(reverted.time_ms, deployment):
            self._move(model, Event.REVERTED, reverted.reason, reverted.detail)
        elif deployment.starts >= self._settings.max_starts:
            self._move(
                model,
                Event.REVERTED,
                Reason.PROBATION_INTERRUPTED,
                f"the gateway lost it {deployment.starts} times in probation",
            )
        else:
            self._move(model, Event.INTERRUPTED, Reason.PROBATION_INTERRUPTED, "the gateway that served it is gone")

    def _is_of_now(self, time_ms: int, deployment: Deployment) -> bool:
        """Whether it was after the deployment came to its state. A clock that was set back since cannot tell; what is newest counts."""
        return time_ms >= deployment.since_ms or self._clock() < deployment.since_ms

    def _wait_for_end_of_probation(self, model: str, deployment: Deployment) -> None:
        seconds = deployment.order.probation.seconds
        passed = max(0.0, (self._clock() - deployment.since_ms) / 1000)
        until = self._judge_until.setdefault(deployment.order.counter, self._present.now + max(0.0, seconds - passed))
        if self._present.now >= until:
            self._move(model, Event.PASSED)
            self._judge_until.pop(deployment.order.counter, None)
            self._passed()

    # --- keep serving -----------------------------------------------------------------------------------------------

    def keep_serving(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """The gateway serves what the record says; what was in the way of the newest order may be gone. Raises `OSError`."""
        self._serving.reconcile(model, self._present.now)
        if deployment.reason is Reason.PINNED:
            if record.pinned is None and self._clock() < deployment.order.expires_ms:
                self._move(model, Event.RETRY)
        elif may_retry(deployment.state, deployment.reason):
            pause = min(self._settings.retry_most_s, self._settings.retry_first_s * 2.0 ** min(deployment.retries, 16))
            now_ms = self._clock()
            paused = not 0 <= now_ms - deployment.since_ms < pause * 1000  # the clock may have been set back
            if paused and now_ms < deployment.order.expires_ms:
                self._move(model, Event.RETRY)
