"""The events that others can be told of, and which lines of a campaign's log they are."""

from __future__ import annotations

from typing import Literal, get_args

EventName = Literal[
    "campaign.started",
    "campaign.stage_passed",
    "campaign.gate_breached",
    "campaign.paused",
    "campaign.halted",
    "campaign.rolling_back",
    "campaign.rolled_back",
    "campaign.done",
    "campaign.aborted",
    "campaign.failed",
    "campaign.approval_wanted",
    "device.quarantined",
    "build.failed",
    "webhook.test",
]
EVENTS: tuple[EventName, ...] = get_args(EventName)

EMAIL_PATTERN = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,186}[A-Za-z0-9])?$"

# The kinds of a campaign's log that are told, and as what.
OF_CAMPAIGNS: dict[str, EventName] = {
    "started": "campaign.started",
    "stage_passed": "campaign.stage_passed",
    "gate_breached": "campaign.gate_breached",
    "paused": "campaign.paused",
    "halted": "campaign.halted",
    "rolling_back": "campaign.rolling_back",
    "rolled_back": "campaign.rolled_back",
    "done": "campaign.done",
    "aborted": "campaign.aborted",
    "failed": "campaign.failed",
}
