"""Requests that wait for a runner: first those that a runner has failed already, then the others in the order they came.

A runner that is granted is marked `busy` for its request at that moment, so that nobody else takes it before the request wakes.
"""

from __future__ import annotations

import asyncio
from collections import deque

from covey_agent.gateway.errors import NoBuildError, QueueFullError, ServeError
from covey_agent.gateway.runner_process import RunnerProcess

Turn = asyncio.Future[RunnerProcess]


class Line:
    """`limit`: how many may wait that no runner has seen yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._new: deque[Turn] = deque()
        self._again: deque[Turn] = deque()

    def join(self, *, again: bool) -> Turn:
        """Wait; raises `QueueFullError`. A request that was let in once is never turned away."""
        if not again and len(self._new) >= self._limit:
            raise QueueFullError(f"{len(self._new)} requests wait already")
        turn: Turn = asyncio.get_running_loop().create_future()
        (self._again if again else self._new).append(turn)
        return turn

    def expire(self, turn: Turn, error: ServeError) -> None:
        if turn.done():
            return
        (self._again if turn in self._again else self._new).remove(turn)
        turn.set_exception(error)

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
                waiting.popleft().set_result(runner)

    def refuse_all(self, text: str) -> None:
        for waiting in (self._again, self._new):
            while waiting:
                waiting.popleft().set_exception(NoBuildError(text))
