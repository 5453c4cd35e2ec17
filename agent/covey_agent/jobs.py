"""Work that takes long (reading gigabytes, waiting for a runner to warm up) in one thread beside the control loop.

One job at a time, in order; its result comes back to the loop as a `Finished`. The loop never waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from covey_agent.errors import GatewayError, StepError
from covey_agent.fetch import storage_step_error
from covey_agent.store import CorruptError
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

Trouble = StepError | CorruptError | GatewayError


@dataclass(frozen=True, slots=True)
class Key:
    """What a job is for: a result that is no longer wanted is recognised by it."""

    model: str
    what: str
    build: str
    counter: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A job has ended; `trouble` None: well."""

    key: Key
    trouble: Trouble | None = None


class Jobs:
    """`start`, then `submit`; `offer` is given each result."""

    def __init__(self, offer: Callable[[Finished], None]) -> None:
        self._offer = offer
        self._queue: queue.SimpleQueue[tuple[Key, Callable[[], None]] | None] = queue.SimpleQueue()
        self._pending: set[Key] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further job is begun; one that runs is left to end with the process."""
        self._queue.put(None)

    def submit(self, key: Key, work: Callable[[], None]) -> bool:
        """Queue the work, unless the same is queued already."""
        if key in self._pending:
            return False
        self._pending.add(key)
        self._queue.put((key, work))
        return True

    def is_pending(self, key: Key) -> bool:
        """Whether this very job is queued or running, or its result not taken yet."""
        return key in self._pending

    def busy(self, model: str) -> bool:
        """Whether anything is queued or running for the model."""
        return any(key.model == model for key in self._pending)

    def settled(self, finished: Finished) -> None:
        """The loop has taken the result."""
        self._pending.discard(finished.key)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            key, work = item
            trouble: Trouble | None = None
            try:
                work()
            except (StepError, CorruptError, GatewayError) as error:
                trouble = error
            except OSError as error:
                trouble = storage_step_error(error)
            except Exception as error:  # noqa: BLE001  # the seam: one bad job must not end all jobs; it is reported
                log.exception("%s of %s failed unexpectedly", key.what, key.build[:12])
                trouble = StepError(Reason.INTERNAL, f"{key.what}: {type(error).__name__}: {error}")
            self._offer(Finished(key, trouble))
