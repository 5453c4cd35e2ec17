"""One window of measurements cut into records that the wire takes: whole builds to a record, and nothing lost but, of a build that alone
is too large, the counts of its largest outputs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from covey_contract.messages import BuildWindow, Telemetry
from covey_contract.wire import MAX_MESSAGE_BYTES

# What a record has beside its windows, with room to spare.
_FRAME_BYTES = 2048


def records(telemetry: Telemetry, limit: int = MAX_MESSAGE_BYTES) -> Iterator[Telemetry]:
    """At least one, also of no windows: resources are measured too. `limit`: bytes of each on the wire."""
    room = limit - _FRAME_BYTES
    held: list[BuildWindow] = []
    used = 0
    for window in telemetry.windows:
        fitting, size = _fitted(window, room)
        if held and used + size > room:
            yield msgspec.structs.replace(telemetry, windows=tuple(held))
            held, used = [], 0
        held.append(fitting)
        used += size + 1
    yield msgspec.structs.replace(telemetry, windows=tuple(held))


def _fitted(window: BuildWindow, room: int) -> tuple[BuildWindow, int]:
    while (size := len(msgspec.json.encode(window))) > room and window.outputs:
        largest = max(window.outputs, key=lambda name: len(msgspec.json.encode(window.outputs[name])))
        rest = {name: counts for name, counts in window.outputs.items() if name != largest}
        window = msgspec.structs.replace(window, outputs=rest)
    return window, size
