"""Requests that wait for a runner: first those that a runner has failed already, then the others in the order they came.

A runner that is granted is marked `busy` for its request at that moment, so that nobody else takes it before the request wakes. A request
that has its runner may take others along (`batching`), which then ride with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covey_agent.gateway.errors import NoBuildError, QueueFullError, ServeError
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.runner_process import Reply, RunnerProcess


@dataclass(frozen=True)
class Ride:
    """A request goes with another one to this runner. `reply`: None if it must be asked again, alone."""

    runner: RunnerProcess
    reply: asyncio.Future[Reply | None]


Turn = asyncio.Future["RunnerProcess | Ride"]


@dataclass(frozen=True)
class _Waiting:
    turn: Turn
    request: InferRequest


class Line:
    """`limit`: how many may wait that no runner has seen yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._new: deque[_Waiting] = deque()
        self._again: deque[_Waiting] = deque()

    def join(self, request: InferRequest, *, again: bool) -> Turn:
        """Wait; raises `QueueFullError`. A request that was let in once is never turned away."""
        if not again and len(self._new) >= self._limit:
            raise QueueFullError(f"{len(self._new)} requests wait already")
        turn: Turn = asyncio.get_running_loop().create_future()
        (self._again if again else self._new).append(_Waiting(turn, request))
        return turn

    def expire(self, turn: Turn, error: ServeError) -> None:
        if turn.done():
            return
        for waiting in (self._again, self._new):
            for one in waiting:
                if one.turn is turn:
                    waiting.remove(one)
                    turn.set_exception(error)
                    return

    def __len__(self) -> int:
        return len(self._new) + len(self._again)

    @property
    def is_empty(self) -> bool:
        """Nobody new waits."""
        return not self._new

    def grant(self, *, again: RunnerProcess | None, new: RunnerProcess | None) -> None:
        """Give the runners to those who are first, as far as they are free."""
        for waiting, runner in ((self._again, again), (self._new, new)):
            if waiting and runner is not None and not runner.busy:
                runner.busy = True
                waiting.popleft().turn.set_result(runner)

    def take_along(
        self, runner: RunnerProcess, choose: Callable[[Sequence[InferRequest]], int]
    ) -> list[tuple[InferRequest, Ride]]:
        """Let as many of the first in line as `choose` says ride with the request that has the runner."""
        taken = []
        for _ in range(choose([one.request for one in self._new])):
            one = self._new.popleft()
            ride = Ride(runner, asyncio.get_running_loop().create_future())
            one.turn.set_result(ride)
            taken.append((one.request, ride))
        return taken

    def refuse_all(self, text: str) -> None:
        for waiting in (self._again, self._new):
            while waiting:
                waiting.popleft().turn.set_exception(NoBuildError(text))
