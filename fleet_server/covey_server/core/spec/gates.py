"""The gates' part of a campaign file: what is judged, by which method, and by which limits.

`docs/verdicts.md` explains the methods. `threshold` compares with a limit; `e_process` weighs the evidence of canaries against control
devices, and may be looked at as often as one likes; `auto` takes the latter where there are enough devices on both sides.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.expression import MAX_LENGTH, parse_condition
from covey_server.core.spec.values import Duration, Name, Rate, Strict, span

MAX_GATES = 10

Measure = Literal["end_to_end", "compute"]
Method = Literal["auto", "e_process", "threshold"]

Requests = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Ratio = Annotated[float, msgspec.Meta(ge=1, le=1000)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Evidence(Strict, frozen=True, kw_only=True):
    """How much evidence the gates of a stage ask for, and how sure they must be.

    `alpha` is the share of stages without any change in which some e-process may halt; the gates share it. `confidence` is that
    of the intervals shown. An e-process needs `min_canaries` in the stage and `min_controls` beside it; `max_controls` of each
    kind are drawn. `min_devices` and `min_requests`, where given, hold for every gate before the stage may pass. `burn_in`,
    where given, is the time after a swap before measurements count, in place of the campaign's `settle`.
    """

    alpha: Annotated[float, msgspec.Meta(ge=1e-6, le=0.2)] = 0.01
    confidence: Annotated[float, msgspec.Meta(ge=0.5, le=0.9999)] = 0.95
    min_canaries: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 10
    min_controls: Annotated[int, msgspec.Meta(ge=5, le=100_000)] = 20
    max_controls: Annotated[int, msgspec.Meta(ge=5, le=2000)] = 150
    min_devices: Number = 0
    min_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    burn_in: Duration | None = None


class InstallGate(Strict, frozen=True, kw_only=True):
    """By threshold: breached by more failed devices than `max_count`, or, once `min_devices` have ended, than `max_rate` of the
    stage's devices. By e-process: by the evidence that more than `base_rate` of the devices fail, and by `max_count`. `auto` is
    the e-process where a `base_rate` is given."""

    max_rate: Rate = 0.1
    max_count: Annotated[int, msgspec.Meta(ge=0)] | None = None
    min_devices: Number = 0
    base_rate: Annotated[float, msgspec.Meta(gt=0, le=0.5)] | None = None
    method: Method = "auto"


class ErrorGate(Strict, frozen=True, kw_only=True):
    """Breached by a higher share of requests that the new build failed than `max_rate`, if it is also higher than before the
    swap; by e-process, if there is evidence that it rose more than the control's did."""

    max_rate: Rate
    min_requests: Requests = 50
    method: Method = "auto"


class LatencyGate(Strict, frozen=True, kw_only=True):
    """Each device's quantile after the swap against its own before. By threshold: breached beyond `max_ratio` (1.5) *and*
    `min_increase_ms` (2); or beyond `max_ms`, where that is given. By e-process: by the evidence that the ratio, against the
    control's, is beyond `max_ratio` (1.02), if it is `min_increase_ms` (0) too. `pass_below`: the stage passes only once the
    confidence sequence of the ratio lies below it."""

    quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99
    max_ratio: Ratio | None = None
    min_increase_ms: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    min_requests: Requests = 100
    measure: Measure = "end_to_end"
    max_ms: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None
    pass_below: Ratio | None = None
    method: Method = "auto"

    @property
    def name(self) -> str:
        """Of one among several: `latency_p99`, `latency_p50_compute`."""
        quantile = f"{self.quantile * 100:g}".replace(".", "_")
        return f"latency_p{quantile}" + ("" if self.measure == "end_to_end" else f"_{self.measure}")


class DriftGate(Strict, frozen=True, kw_only=True):
    """How far the distribution of the outputs moved, on each device since before its swap, as the population stability index
    (PSI); of `output`, or of the one that moved furthest. By threshold: breached where more than a tenth of the devices moved
    further than `max_psi`. By e-process: by the evidence that they moved further than the control's, and further than `max_psi`."""

    output: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    max_psi: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.2
    min_requests: Requests = 200
    method: Method = "auto"


class TemperatureGate(Strict, frozen=True, kw_only=True):
    """Breached where more than a tenth of the devices are hotter than `max_c`, or by more than `max_rise_c` hotter than before
    their swap; by e-process, by the evidence that they rose by more than `max_rise_c` against the control."""

    max_c: Annotated[float, msgspec.Meta(ge=-50, le=200)] | None = None
    max_rise_c: Annotated[float, msgspec.Meta(ge=0, le=200)] = 10.0
    method: Method = "auto"


class ThrottlingGate(Strict, frozen=True, kw_only=True):
    """Breached where more than `max_share` of the devices throttle themselves in more windows than before their swap; by
    e-process, by the evidence that it happens to more canaries than to the control."""

    max_share: Rate = 0.1
    method: Method = "auto"


class MemoryGate(Strict, frozen=True, kw_only=True):
    """Breached where more than a tenth of the devices use more memory than `max_mb`, or than `max_ratio` times what they used
    before their swap; by e-process, by the evidence that it rose by more than `max_ratio` against the control."""

    max_mb: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None
    max_ratio: Ratio = 1.5
    method: Method = "auto"


class SilenceGate(Strict, frozen=True, kw_only=True):
    """Devices that were lost after their swap: not heard of for `after`, crashed, or gone back by themselves. Breached where they
    are more than `max_share`; by e-process, by the evidence that it happens to more canaries than to the control."""

    after: Duration = span(120_000)
    max_share: Rate = 0.1
    method: Method = "auto"


class ExpressionGate(Strict, frozen=True, kw_only=True):
    """A condition over a device's figures (`covey_server.core.spec.expression.FIGURES`) that is true of a bad device. Breached
    where more than `max_share` of the devices are bad; by e-process, by the evidence that more canaries are than the control."""

    name: Name
    bad: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LENGTH)]
    max_share: Rate = 0.1
    min_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    method: Method = "auto"

    def __post_init__(self) -> None:
        try:
            parse_condition(self.bad)
        except ValueError as error:
            raise ValueError(f"bad: {error}") from error


class Gates(Strict, frozen=True, kw_only=True):
    """A gate that is not named is not judged, but for install failures, which always are. `latency` may be a list, with one gate
    for each quantile or measure."""

    evidence: Evidence = Evidence()
    install_failures: InstallGate = InstallGate()
    errors: ErrorGate | None = None
    latency: LatencyGate | Annotated[tuple[LatencyGate, ...], msgspec.Meta(max_length=MAX_GATES)] | None = None
    drift: DriftGate | None = None
    temperature: TemperatureGate | None = None
    throttling: ThrottlingGate | None = None
    memory: MemoryGate | None = None
    silence: SilenceGate | None = None
    expressions: Annotated[tuple[ExpressionGate, ...], msgspec.Meta(max_length=MAX_GATES)] = ()

    def __post_init__(self) -> None:
        for what, names in (
            ("latency", [gate.name for _, gate in self.latencies]),
            ("expressions", [gate.name for gate in self.expressions]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: two gates are called {max(names, key=names.count)}")

    @property
    def latencies(self) -> tuple[tuple[str, LatencyGate], ...]:
        """Each latency gate with the name its verdict goes by."""
        if self.latency is None:
            return ()
        if isinstance(self.latency, LatencyGate):
            return (("latency", self.latency),)
        return tuple((gate.name, gate) for gate in self.latency)
