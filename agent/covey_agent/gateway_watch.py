"""Notices at once that the gateway's process is gone, whoever started it: what serves is to be back within a second.

Source: pidfd_open(2): such a descriptor is readable as soon as its process has ended. Where the kernel has none (before Linux 5.3) the next
look at the gateway finds out.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class GatewayWatch:
    """`gone` is called from a thread."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone
        self._followed: int | None = None

    def follow(self, pid: int | None) -> None:
        """From now on this process, if it is another; None: none."""
        if pid == self._followed:
            return
        self._followed = pid
        if pid is None:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            log.debug("the gateway's process cannot be watched: %s", error)
            return
        threading.Thread(target=self._wait, args=(descriptor,), name="gateway watch", daemon=True).start()

    def _wait(self, descriptor: int) -> None:
        try:
            select.select([descriptor], [], [])
        finally:
            os.close(descriptor)
        self._gone()
