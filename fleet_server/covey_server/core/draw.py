"""The draw: in which order a seed takes the devices of a fleet. Whole numbers only, so that SQL can do the same to a million rows.

A device has a lot, fixed for its life; a seed is a permutation of the lots; and a share places each device of a kind evenly
between 0 and `SHARE`, so that every beginning of the order holds each kind in proportion.

>>> lot_of("press-1")
260948687
>>> Permutation.of(7).place(lot_of("press-1"))
524516992
>>> [share(rank, 4) * 8 // SHARE for rank in range(4)]
[1, 3, 5, 7]
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MODULUS = (1 << 31) - 1  # a prime; products of two numbers below it fit a database's 64-bit integers
SHARE = 1 << 30


def lot_of(device: str) -> int:
    """The first 31 bits of the SHA-256 of a device's id."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Permutation:
    """An affine map of the whole numbers below `MODULUS`; drawn at random it sends any two lots to independent places."""

    factor: int
    offset: int

    @staticmethod
    def of(seed: int) -> Permutation:
        digest = hashlib.sha256(f"draw {seed}".encode()).digest()
        factor, offset = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8))
        return Permutation(1 + factor % (MODULUS - 1), offset % MODULUS)

    def place(self, lot: int) -> int:
        return (self.factor * lot + self.offset) % MODULUS


def share(rank: int, size: int) -> int:
    """Where the device of that rank (from 0) among `size` of its kind stands between 0 and `SHARE`."""
    return (2 * rank + 1) * (SHARE // 2) // size
