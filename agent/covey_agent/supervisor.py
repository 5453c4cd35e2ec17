"""Telling systemd that the agent is ready, alive, and what it does (`Type=notify`, `WatchdogSec`).

Source: sd_notify(3): one datagram of `NAME=VALUE` lines to the socket that the environment names. Without one, nobody asks.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Supervisor:
    """`address` of the socket, empty for none; `watchdog_s`: how long the supervisor lets us be silent, None for ever."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self._every_s = watchdog_s / 3 if watchdog_s is not None else None
        self._next = 0.0
        self._told = ""

    def ready(self) -> None:
        self._say("READY=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def status(self, words: str) -> None:
        """One line for `systemctl status`, told when it changes."""
        if words != self._told:
            self._told = words
            self._say(f"STATUS={words}")

    def alive(self, now: float) -> None:
        """To be called as often as the loop comes round; `now` is monotonic seconds."""
        if self._every_s is not None and now >= self._next:
            self._next = now + self._every_s
            self._say("WATCHDOG=1")

    def _say(self, line: str) -> None:
        if not self._address:
            return
        # A name in the abstract namespace is written with @.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as teller:
                teller.sendto(line.encode(), socket.MSG_NOSIGNAL, address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", line, error)
            self._address = ""


def supervisor_of(environment: Mapping[str, str], pid: int | None = None) -> Supervisor:
    """The one that started this process (`pid`; None: our own), if it wants to be told."""
    pid = os.getpid() if pid is None else pid
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
    watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) > 0 and meant else None
    address = environment.get("NOTIFY_SOCKET", "")
    return Supervisor(address if address[:1] in ("/", "@") else "", watchdog_s)
