"""Devices' words made fit for the database's columns, so that no device can spoil a batch."""

from __future__ import annotations

MAX_INT = 1 << 53


def clean(text: str, length: int) -> str:
    """PostgreSQL takes no NUL characters; columns have lengths."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


def clamp(number: int) -> int:
    return max(0, min(number, MAX_INT))
