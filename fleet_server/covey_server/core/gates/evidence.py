"""What gates look at: devices before and after their swap, and the control devices beside them. Plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from covey_contract.drift import OutputCounts
from covey_contract.drift import merge as merge_outputs
from covey_contract.histogram import Histogram, merge
from covey_server.core.spec.gates import Measure

# Why a device that has swapped says nothing more: it is evidence, not absence.
Lost = Literal["silent", "crashed", "went_back"]


@dataclass(frozen=True)
class Window:
    """What one build did in one window of one device, or in several put together. Latencies are in seconds.

    `temperature_c` and `memory_mb` are means over `readings` of the device's resources, of which `throttled` said that it throttles
    itself.
    """

    ok: int
    failed: int  # requests that failed, or that this build failed and the previous one answered
    latency: Histogram = field(default_factory=Histogram)  # end to end
    compute: Histogram = field(default_factory=Histogram)
    outputs: Mapping[str, OutputCounts] = field(default_factory=dict)
    readings: int = 0
    throttled: int | None = None
    temperature_c: float | None = None
    memory_mb: float | None = None

    @property
    def requests(self) -> int:
        return self.ok + self.failed

    def of(self, measure: Measure) -> Histogram:
        return self.latency if measure == "end_to_end" else self.compute


def together(windows: Sequence[Window]) -> Window:
    """One window over all of them."""
    if len(windows) == 1:
        return windows[0]
    throttled = [window.throttled for window in windows if window.throttled is not None]
    return Window(
        sum(window.ok for window in windows),
        sum(window.failed for window in windows),
        merge([window.latency for window in windows]),
        merge([window.compute for window in windows]),
        _outputs(windows),
        sum(window.readings for window in windows),
        sum(throttled) if throttled else None,
        _mean([(window.temperature_c, window.readings) for window in windows]),
        _mean([(window.memory_mb, window.readings) for window in windows]),
    )


def _outputs(windows: Sequence[Window]) -> Mapping[str, OutputCounts]:
    found: dict[str, list[OutputCounts]] = {}
    for window in windows:
        for name, counts in window.outputs.items():
            found.setdefault(name, []).append(counts)
    merged = {}
    for name, counts_of in found.items():
        try:
            merged[name] = merge_outputs(counts_of)
        except ValueError:  # counted in other bins from some moment on: the later ones are of the build that serves
            merged[name] = counts_of[-1]
    return merged


def _mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, max(weight, 1)) for value, weight in values if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


@dataclass(frozen=True)
class DeviceEvidence:
    """A device that has swapped, or a control device over the same span of time.

    `before` are its windows with the build before, `after` those with the new one since the burn-in; of a control device, both are of
    the build that it has been running. `had_build` is False where the model is new to the device, so that there is nothing to
    compare with. `kind` is its firmware profile.
    """

    device: str
    had_build: bool
    before: tuple[Window, ...]
    after: tuple[Window, ...]
    kind: str = ""
    site: str = ""
    lost: Lost | None = None

    @cached_property
    def was(self) -> Window:
        """All of it before."""
        return together(self.before)

    @cached_property
    def is_now(self) -> Window:
        """All of it after."""
        return together(self.after)

    @cached_property
    def memo(self) -> dict[object, float | None]:
        """What was computed of this device: its windows do not change, and gates look at it again and again."""
        return {}


@dataclass(frozen=True)
class SiteCount:
    """How many devices of the stage, and how many that could be control devices, stand at a site of the stage."""

    site: str
    canaries: int
    controls: int


@dataclass(frozen=True)
class StageEvidence:
    """All that the gates of one stage look at.

    `ordered`: the devices that have their order, all of the stage if None. `controls` are those that there are figures of,
    `control_pool` how many could be drawn on; `loading` how many devices' telemetry has not been read yet.
    """

    devices: int  # of the stage
    install_failures: int
    active: int = 0
    already: int = 0  # those of them that ran the version before the campaign came; they have nothing to tell
    swapped: tuple[DeviceEvidence, ...] = ()
    ordered: int | None = None
    controls: tuple[DeviceEvidence, ...] = ()
    control_pool: int | None = None
    sites: tuple[SiteCount, ...] = ()
    loading: int = 0

    @property
    def canaries(self) -> int:
        """Devices of the stage that change something."""
        return self.devices - self.already

    @cached_property
    def present(self) -> tuple[DeviceEvidence, ...]:
        """Those that have swapped and neither crashed nor gone back; install failures count the others."""
        return tuple(device for device in self.swapped if device.lost in {None, "silent"})

    @property
    def pool(self) -> int:
        return len(self.controls) if self.control_pool is None else self.control_pool

    @cached_property
    def whole_sites(self) -> bool:
        """Most of the canaries that stand at a site are alone there, with others of theirs: they were chosen by whole sites. What
        a site shares would then look like the new build's doing."""
        placed = sum(each.canaries for each in self.sites)
        alone = sum(each.canaries for each in self.sites if each.canaries > 1 and each.controls == 0)
        return 2 * alone > placed


def log_ratio(after: float, before: float) -> float | None:
    """None where either is not above zero."""
    if not (after > 0 and before > 0 and math.isfinite(after) and math.isfinite(before)):
        return None
    return math.log(after / before)
