"""The target's part of a campaign file: which devices, and whether those that come to match later are taken in."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from covey_server.core.spec.values import Devices, Names, Strict

MAX_TERMS = 16
MAX_CHOICES = 64

SELECTOR_KEY = r"^(profile|simulated|labels\.[A-Za-z0-9_-]{1,64}|facts(\.[A-Za-z0-9_]{1,64}){1,4})\Z"
SelectorKey = Annotated[str, msgspec.Meta(pattern=SELECTOR_KEY)]
_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Choices = Annotated[list[_Text | bool | int | float], msgspec.Meta(min_length=1, max_length=MAX_CHOICES)]
# As that of a group: a device is selected if it has one of the values for every key.
Selector = Annotated[
    dict[SelectorKey, _Text | bool | int | float | _Choices], msgspec.Meta(min_length=1, max_length=MAX_TERMS)
]

Membership = Literal["frozen", "live"]


class DeviceSet(Strict, frozen=True, kw_only=True):
    """The devices of these groups, these devices, and those that the selector chooses: all of them together."""

    groups: Names = ()
    devices: Devices = ()
    select: Selector | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.groups or self.devices or self.select)


class Target(DeviceSet, frozen=True, kw_only=True):
    """`frozen`: whoever matches when the campaign is made. `live`: devices that come to match later are taken in, into the
    present stage or a later one, never into one that has passed; planned devices that no longer match are left out."""

    membership: Membership = "frozen"
    at_most: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = None  # devices, by the draw
