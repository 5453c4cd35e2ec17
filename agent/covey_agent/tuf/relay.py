"""The repository's files by way of the device's own MQTT session, where that is all that is open.

Nothing of it is believed for having come that way: the update client reads them like files from a stick.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from covey_contract.errors import DecodeError
from covey_contract.messages import MetadataPart, MetadataRequest
from covey_contract.metadata import MAX_BYTES, unpack_metadata

log = logging.getLogger(__name__)

WAIT_S = 20.0


class Relay:
    """`fetch` waits, in a thread beside the control loop; `take` is called by the loop. `send` says whether there is a session."""

    def __init__(self, send: Callable[[MetadataRequest], bool], wait_s: float = WAIT_S) -> None:
        self._send = send
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._id = ""
        self._parts: dict[int, bytes] = {}
        self._whole = threading.Event()

    def fetch(self, path: str, root: int) -> dict[str, bytes] | None:
        """The files that lead to a target for who trusts that version of root; None: they cannot be had."""
        with self._lock:
            self._id, self._parts = secrets.token_hex(8), {}
            self._whole.clear()
        if not self._send(MetadataRequest(id=self._id, path=path, root=root)) or not self._whole.wait(self._wait_s):
            return None
        with self._lock:
            data = b"".join(part for _, part in sorted(self._parts.items()))
            self._id, self._parts = "", {}
        try:
            return unpack_metadata(data)
        except DecodeError as error:
            log.warning("metadata that came by MQTT are ignored: %s", error)
            return None

    def take(self, part: MetadataPart) -> None:
        """One part; it may come twice, in any order, or unasked."""
        with self._lock:
            if not self._id or part.id != self._id or part.part >= part.parts:
                return
            if sum(map(len, self._parts.values())) + len(part.data) > MAX_BYTES:
                return
            self._parts[part.part] = part.data
            if len(self._parts) == part.parts:
                self._whole.set()
