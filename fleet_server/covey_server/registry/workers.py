"""Which targets somebody can build: what workers said when they last asked for a job. In memory; it is a hint for people."""

from __future__ import annotations

import threading
from collections.abc import Sequence

# A worker asks every few seconds; one that has not for so long is gone.
_GONE_MS = 10 * 60_000


def matches(patterns: Sequence[str], target: str) -> bool:
    """Whether one of the patterns, which may end in `*`, stands for the target.

    >>> matches(["openvino-*"], "openvino-int8")
    True
    """
    return any(target.startswith(pattern[:-1]) if pattern.endswith("*") else target == pattern for pattern in patterns)


class Workers:
    """`own` are the targets of the server's local worker, which comes by itself."""

    def __init__(self, own: Sequence[str] = ()) -> None:
        self._own = tuple(own)
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[tuple[str, ...], int]] = {}

    def seen(self, worker: str, targets: Sequence[str], now_ms: int) -> None:
        with self._lock:
            living = {name: seen for name, seen in self._seen.items() if now_ms - seen[1] < _GONE_MS}
            self._seen = {**living, worker: (tuple(targets), now_ms)}

    def can_build(self, target: str, now_ms: int) -> bool:
        with self._lock:
            seen = list(self._seen.values())
        return matches(self._own, target) or any(
            now_ms - at < _GONE_MS and matches(targets, target) for targets, at in seen
        )
