"""Orders before reports: while many orders are being given out, who stores what devices say waits a little.

Both need the database's one writer and the interpreter, and the first devices to get an order speak of it at once; without this the
last of ten thousand devices would get theirs after all that the first had to say. What is not stored meanwhile waits at the broker.
"""

from __future__ import annotations

import threading

PATIENCE_S = 2.0


class Precedence:
    """Thread-safe. Claims go by name, so that claiming twice is claiming once."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._claims: set[str] = set()
        self._changed = threading.Condition()

    def claim(self, name: str, wanted: bool = True) -> None:
        """`name` is giving out orders; or, with `wanted` false, no longer."""
        with self._changed:
            if wanted:
                self._claims.add(name)
            else:
                self._claims.discard(name)
                self._changed.notify_all()

    def give_way(self) -> None:
        """Returns once nobody gives out orders, or when it has been waited for long enough."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claims, self._patience_s)
