"""A thread of its own for one kind of message, so that neither it nor the others wait for one another."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod

from covey_server.fleet.inbox import Incoming

_WAIT_S = 0.5


class QueueThread(ABC):
    """Takes what comes, one after the other, between `start` and `stop`."""

    def __init__(self, name: str, incoming: queue.Queue[Incoming]) -> None:
        self._name = name
        self._incoming = incoming
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10.0)

    @abstractmethod
    def take(self, incoming: Incoming) -> None:
        """Must not raise what may happen: that would end the thread."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                incoming = self._incoming.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            self.take(incoming)
