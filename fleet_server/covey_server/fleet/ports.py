"""TCP ports that may be given to others."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_LOWEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RANGE_BEGINS = 32_768  # Linux's default
_TRIES = 200


def free_port(bind: str = "127.0.0.1") -> int:
    """A port that is free on `bind` now, and none that the kernel gives to connections.

    One of those is soon taken again by somebody's connection, even by one to that very port: TCP lets a client that asks again and again on the
    same machine connect to itself (RFC 9293, 3.5, simultaneous open). Raises `OSError` if the kernel has no port either.
    """
    begins = _RANGE_BEGINS
    with contextlib.suppress(OSError, ValueError, IndexError):
        begins = int(_RANGE.read_text().split()[0])
    if begins > _LOWEST:
        draw = random.SystemRandom()  # processes that were forked from one would draw the same
        for _ in range(_TRIES):
            port = draw.randrange(_LOWEST, begins)
            if port_is_free(port, bind):
                return port
    with socket.socket(_family(bind)) as probe:
        probe.bind((bind, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, bind: str = "127.0.0.1") -> bool:
    with socket.socket(_family(bind)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError:
            return False
    return True


def _family(bind: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in bind else socket.AF_INET
