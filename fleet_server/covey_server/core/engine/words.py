"""The engine's sentences: what a campaign waits for, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from covey_server.core.engine.seen import Progress, StageCounts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(ms: int) -> str:
    """A moment, to the minute.

    >>> at(1_796_162_400_000)
    '2026-12-01 22:00 UTC'
    """
    return f"{_EPOCH + timedelta(milliseconds=ms):%Y-%m-%d %H:%M} UTC"


def active(counts: StageCounts) -> str:
    return f"{counts.active} of {counts.total} active"


def starting(campaign: Progress) -> str:
    return f"{campaign.spec.stages[campaign.stage].name}: orders are going out"


def approval_by(campaign: Progress) -> str:
    return "approval" + (f" by somebody other than {campaign.author}" if campaign.author else "")


def ended(stages: Sequence[StageCounts]) -> str:
    """`done: 4 of 6 devices active, 2 to catch up`"""
    active_, total = sum(each.active for each in stages), sum(each.total for each in stages)
    parts = [f"done: {active_} of {total} devices active"]
    for number, what in (
        (sum(each.unserved + each.mute for each in stages), "of them have answered no request yet"),
        (sum(each.planned + each.in_flight for each in stages), "to catch up"),
        (sum(each.retrying for each in stages), "to be tried again"),
        (sum(each.failed for each in stages), "failed"),
    ):
        if number:
            parts.append(f"{number} {what}")
    return ", ".join(parts)


def not_reached(counts: StageCounts) -> str:
    """Why the rest of a stage has not been reached, in brackets; empty if there is nothing to say."""
    absent = max(counts.planned + counts.retrying - sum(counts.ready.values()) - counts.retrying, 0)
    kinds = [
        (absent, "not connected"),
        (counts.away, "off"),
        (counts.unknown, "fell silent"),
        (counts.waiting, "waiting"),
        (counts.retrying, "to be tried again"),
        (counts.unserved + counts.mute, "have answered no request"),
    ]
    named = [f"{number} {what}" for number, what in kinds if number]
    return f" ({', '.join(named)})" if named else ""
