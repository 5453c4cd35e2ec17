"""`covey-agent lock` and `unlock`: the device's lock from a script, by the same endpoint that applications use."""

from __future__ import annotations

import json
import re
from typing import Any

from covey_agent.errors import UsageError
from covey_agent.gateway.lock_door import PATH
from covey_agent.gateway.locks import MAX_TTL_S
from covey_agent.infer import exchange

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIMEOUT_S = 10.0


def seconds(text: str) -> float:
    """`90`, `90s`, `15m` or `2h` in seconds; raises `UsageError`.

    >>> seconds("15m")
    900.0
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", text)
    value = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < value <= MAX_TTL_S:
        raise UsageError(f"{text!r} is not a time of at most {MAX_TTL_S / 3600:.0f} hours, such as 90s, 15m or 2h")
    return value


def lock(port: int, owner: str, ttl_s: float) -> dict[str, Any]:
    """The gateway's answer. Raises `AgentError` for what it refuses."""
    return exchange(port, "POST", PATH, _TIMEOUT_S, json.dumps({"owner": owner, "ttl_s": ttl_s}).encode())


def unlock(port: int, owner: str) -> dict[str, Any]:
    return exchange(port, "DELETE", PATH, _TIMEOUT_S, json.dumps({"owner": owner}).encode())


def holders(port: int) -> list[dict[str, Any]]:
    locks: list[dict[str, Any]] = exchange(port, "GET", PATH, _TIMEOUT_S)["locks"]
    return locks
