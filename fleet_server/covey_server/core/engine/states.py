"""The states of a campaign and of a device's part in it, and what people may tell a campaign."""

from __future__ import annotations

import enum


class CampaignState(enum.StrEnum):
    """QUEUED starts by itself: once it is approved, its time has come, and no other campaign is under way on its devices.
    PAUSED goes on when told to. HALTED only goes back or is aborted. DONE may still be open: devices that come later are
    served. FAILED: going back left devices on the wrong build."""

    PLANNED = "planned"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"


# May have orders on their way, so that no other campaign may touch their devices and model.
ACTIVE = frozenset({CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.HALTED, CampaignState.ROLLING_BACK})


class DeviceState(enum.StrEnum):
    """A device's part in a campaign. RETRYING: failed, and gets another order. SKIPPED: left out, taken over by a later order
    of someone else, or never reached before the campaign went back. RESTORED_LOCALLY: had gone back by itself before the
    campaign did."""

    PLANNED = "planned"
    ASSIGNED = "assigned"
    ACTIVE = "active"
    FAILED = "failed"
    RETRYING = "retrying"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    RESTORED_LOCALLY = "restored_locally"
    SKIPPED = "skipped"


class Action(enum.StrEnum):
    """What people may tell a campaign."""

    START = "start"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"
    SKIP_SOAK = "skip-soak"
    RETRY = "retry"
    CLOSE = "close"
