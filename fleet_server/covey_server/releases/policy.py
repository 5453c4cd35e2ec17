"""What the parts of the repository are called, how long they last, and into how many bins a family is spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
# Signed fields of our own: the keys that may sign orders (in root), and when a timestamp was signed.
DIRECTOR = "x-covey-director"
ISSUED = "x-covey-issued"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

_FAMILY = "models~"  # no model's name has a tilde, and in an address it needs no quoting


@dataclass(frozen=True)
class Policy:
    """Lifetimes, and when they are renewed. `bins`: from how many targets on a family is spread over so many bins."""

    lifetimes: Mapping[str, timedelta] = field(
        default_factory=lambda: {
            ROOT: timedelta(days=365),
            TARGETS: timedelta(days=183),
            SNAPSHOT: timedelta(days=7),
            TIMESTAMP: timedelta(hours=24),
        }
    )
    publisher: timedelta = timedelta(days=90)
    bins: tuple[tuple[int, int], ...] = ((1025, 256), (65, 16))

    def with_online(self, timestamp_s: int, snapshot_s: int) -> Policy:
        """The same, with other lifetimes for what the server signs by itself."""
        online = {SNAPSHOT: timedelta(seconds=snapshot_s), TIMESTAMP: timedelta(seconds=timestamp_s)}
        return replace(self, lifetimes={**self.lifetimes, **online})

    def lifetime(self, role: str) -> timedelta:
        return self.lifetimes.get(role, self.publisher)

    def renewal(self, role: str) -> timedelta:
        """A role with less than this left is signed anew."""
        return self.lifetime(role) / 2

    def alarm(self, role: str) -> timedelta:
        """A role with less than this left is in trouble: whoever should have renewed it did not."""
        return self.lifetime(role) / 6 if role in (ROOT, TARGETS) else self.lifetime(role) / 4

    def bin_count(self, targets: int) -> int:
        """0: the family's targets stand in its own role."""
        return next((bins for least, bins in self.bins if targets >= least), 0)


def target_path(model: str, version: str, target: str) -> str:
    """Where a build's manifest stands in the repository.

    >>> target_path("digits", "1.0", "openvino-int8")
    'models/digits/1.0/openvino-int8'
    """
    return f"models/{model}/{version}/{target}"


def publisher_role(model: str) -> str:
    """The role that speaks for a family of models, and no other does: it is terminating."""
    return f"{_FAMILY}{model}"


def publisher_paths(model: str) -> list[str]:
    return [f"models/{model}/*/*"]


def bin_role(model: str, prefix: str) -> str:
    """The bin for paths whose SHA-256 begins with these hex digits.

    >>> bin_role("digits", "0a")
    'models~digits~0a'
    """
    return f"{publisher_role(model)}~{prefix}"


def bin_prefixes(bins: int) -> list[str]:
    """16 -> 0…f, 256 -> 00…ff."""
    digits = {16: 1, 256: 2}[bins]
    return [f"{number:0{digits}x}" for number in range(bins)]


def model_of(role: str) -> str | None:
    """The family that a publisher or bin belongs to; None for the top-level roles."""
    return role.removeprefix(_FAMILY).split("~")[0] if role.startswith(_FAMILY) else None
