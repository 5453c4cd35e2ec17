"""The gates' part of a campaign file: what is judged, and by which limits."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.values import Rate, Strict

Measure = Literal["end_to_end", "compute"]


class InstallGate(Strict, frozen=True, kw_only=True):
    """Breached by more failed devices than `max_count`, or than `max_rate` of the stage's devices."""

    max_rate: Rate = 0.1
    max_count: Annotated[int, msgspec.Meta(ge=0)] | None = None


class ErrorGate(Strict, frozen=True, kw_only=True):
    """Breached by a higher share of requests that the new build failed, if it is also higher than before the swap."""

    max_rate: Rate
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 50


class LatencyGate(Strict, frozen=True, kw_only=True):
    """Each device's quantile after the swap against its own before: breached beyond `max_ratio` *and* `min_increase_ms`; or
    beyond `max_ms`, where that is given."""

    quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99
    max_ratio: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 1.5
    min_increase_ms: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 2.0
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 100
    measure: Measure = "end_to_end"
    max_ms: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None


class Gates(Strict, frozen=True, kw_only=True):
    """A gate that is not named is not judged, but for install failures, which always are."""

    install_failures: InstallGate = InstallGate()
    errors: ErrorGate | None = None
    latency: LatencyGate | None = None
