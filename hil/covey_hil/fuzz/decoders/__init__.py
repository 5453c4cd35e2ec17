"""Every decoder of bytes from outside, room by room. A new one is a line in one of these files."""

from __future__ import annotations

from covey_hil.fuzz.decoder import Decoder
from covey_hil.fuzz.decoders import contract, device, gateway, identity, models, server

DECODERS: dict[str, Decoder] = {
    one.name: one
    for one in (
        *(*contract.DECODERS, *device.DECODERS, *identity.DECODERS),
        *(*gateway.DECODERS, *server.DECODERS, *models.DECODERS),
    )
}
