"""Counts of what happened, for `/metrics`: monotonic, thread-safe, by name and labels."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import NamedTuple

_Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


# Every counter, with the help text that Prometheus shows.
HELP = {
    "covey_delivery_bytes_total": "Bytes of build blocks sent to devices, by build.",
    "covey_delivery_blocks_total": "Build blocks sent to devices, by build.",
    "covey_broadcast_bytes_total": "Bytes of build blocks that were sent once to all who listen, by build.",
    "covey_broadcast_listeners_total": "Devices that were told to listen to a broadcast, by build.",
    "covey_delivery_refused_total": "Block requests not answered, by reason.",
    "covey_messages_total": "Messages received from devices, by kind.",
    "covey_messages_refused_total": "Messages from devices that were dropped, by reason.",
    "covey_messages_duplicate_total": "Reports and telemetry records that had been stored before.",
    "covey_assignments_sent_total": "Assignments sent to devices, resends included.",
    "covey_ingest_batches_total": "Transactions in which messages of devices were stored.",
    "covey_enrolments_total": "Devices that enrolled, by outcome.",
}


class Counters:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[tuple[str, _Labels], float] = defaultdict(float)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """`name` is one of `HELP`."""
        if name not in HELP:
            raise KeyError(name)
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._values[key] += amount

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of `name` that carry at least these labels."""
        wanted = set(labels.items())
        with self._lock:
            return sum(value for (key, held), value in self._values.items() if key == name and wanted <= set(held))

    def snapshot(self) -> list[Sample]:
        with self._lock:
            return [Sample(name, dict(labels), value) for (name, labels), value in sorted(self._values.items())]
