"""Campaigns over a million devices: what is decided once is kept once, and what has moved is noted."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing yet."""
