"""What goes on in a test of the gateway while the test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Beside:
    """Each `work` in a thread of its own for as long as the block lasts; it is to end when `stopped` is set."""

    def __init__(self, *work: Callable[[], None]) -> None:
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=one) for one in work]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
