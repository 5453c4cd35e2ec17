"""What the devices of a fleet would have reported: for each its histogram of latency and its failures since any minute.

The histograms are the contract's (scale 4, log-linear within a bucket), kept as arrays for a whole fleet; a unit test holds them
against `covey_contract.histogram`. Buckets below a device's own `Fleet.cut` are one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.verdicts.fleet import Floats, Ints, Minute
from covey_contract.histogram import DEFAULT_SCALE

BUCKETS = 96  # six doublings above the cut
SCALE = 1 << DEFAULT_SCALE

# (minute, device, is of the tail) -> what is added to ln latency.
Slowdown = Callable[[int, Ints, npt.NDArray[np.bool_]], "Floats | float"]


@dataclass(frozen=True)
class Span:
    """All devices over a span of minutes: counts by bucket, requests, failures. Each array's first axis is the device."""

    first: Ints  # the OpenTelemetry index of bucket 1
    counts: npt.NDArray[Any]
    requests: Ints
    failed: Ints

    def log_quantile(self, q: float) -> Floats:
        """ln of the quantile in seconds, one for each device; −inf where it lies below the cut or there is nothing."""
        reached = np.cumsum(self.counts, axis=1)
        rank = q * self.requests
        bucket = np.minimum((reached < rank[:, None]).sum(axis=1), BUCKETS - 1)
        rows = np.arange(len(bucket))
        count = self.counts[rows, bucket]
        part = (rank - (reached[rows, bucket] - count)) / np.maximum(count, 1)
        value = (self.first + bucket - 1 + part) / SCALE * np.log(2)
        return np.where((bucket > 0) & (self.requests > 0), value, -np.inf)

    def above(self, log_bound: Floats) -> Floats:
        """How many requests took longer than each device's bound (ln seconds), log-linear within the bucket."""
        position = np.clip(log_bound / np.log(2) * SCALE - self.first + 1, 1, BUCKETS - 1e-9)
        whole = position.astype(int)
        rows = np.arange(len(whole))
        beyond = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]
        beyond = np.concatenate([beyond, np.zeros((len(whole), 1), beyond.dtype)], axis=1)
        above: Floats = beyond[rows, whole + 1] + self.counts[rows, whole] * (1 - (position - whole))
        return above


class Recording:
    """Minutes of some of a fleet's devices, added up, so that any span is a difference of two sums."""

    def __init__(self, cut: Floats, devices: Ints) -> None:
        self.devices = devices
        self._first = np.ceil(cut[devices] / np.log(2) * SCALE).astype(int) - 1
        self._row = np.full(len(cut), -1)
        self._row[devices] = np.arange(len(devices))
        self._counts = [np.zeros((len(devices), BUCKETS), np.int32)]
        self._requests = [np.zeros(len(devices), np.int64)]
        self._failed = [np.zeros(len(devices), np.int64)]

    def add(self, minute: Minute, slowdown: Slowdown | None = None, failed: Ints | None = None) -> None:
        """`slowdown` and `failed` stand in for what the fleet itself drew."""
        row = self._row[minute.device]
        ours = row >= 0
        row, latency = row[ours], minute.log2_latency[ours]
        if slowdown is not None:
            latency = latency + np.asarray(slowdown(self.minutes, minute.device[ours], minute.tail[ours])) / np.log(2)
        bucket = np.clip(np.ceil(latency * SCALE).astype(int) - self._first[row], 0, BUCKETS - 1)
        counts = np.bincount(row * BUCKETS + bucket, minlength=len(self.devices) * BUCKETS).astype(np.int32)
        counts = counts.reshape(-1, BUCKETS)
        requests = minute.requests[self.devices]
        counts[:, 0] += (requests - np.bincount(row, minlength=len(self.devices))).astype(np.int32)
        self._counts.append(self._counts[-1] + counts)
        self._requests.append(self._requests[-1] + requests)
        self._failed.append(self._failed[-1] + (minute.failed if failed is None else failed)[self.devices])

    @property
    def minutes(self) -> int:
        return len(self._counts) - 1

    def span(self, start: Ints | int, end: Ints | int, rows: Ints | slice = slice(None)) -> Span:
        """The minutes from `start` up to `end`, which may differ by device; of all devices, or of `rows`."""
        first = self._first[rows]
        if isinstance(start, int) and isinstance(end, int):
            return Span(
                first,
                (self._counts[end] - self._counts[start])[rows],
                (self._requests[end] - self._requests[start])[rows],
                (self._failed[end] - self._failed[start])[rows],
            )
        which = np.arange(len(self.devices))[rows]
        starts, ends = np.broadcast_to(start, which.shape), np.broadcast_to(end, which.shape)
        spans = list(zip(which.tolist(), starts.tolist(), ends.tolist(), strict=True))
        return Span(
            first,
            np.array([self._counts[b][i] - self._counts[a][i] for i, a, b in spans], int).reshape(-1, BUCKETS),
            np.array([self._requests[b][i] - self._requests[a][i] for i, a, b in spans], int),
            np.array([self._failed[b][i] - self._failed[a][i] for i, a, b in spans], int),
        )
