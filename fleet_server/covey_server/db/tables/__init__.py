"""The server's tables. Times are Unix times in milliseconds, digests SHA-256 in hex, signed things their exact bytes.

`desired` against `reported` is the state of the world: the newest assignment of each device and model, and what the device
says it runs. Everything else explains how that came about.
"""

from __future__ import annotations

from covey_server.db.tables.base import Base, Id
from covey_server.db.tables.campaigns import Campaign, CampaignChoice, CampaignDevice, CampaignEvent
from covey_server.db.tables.deployments import AssignmentRow, Desired, MovedDevice, Reported, ReportRow, TelemetryRow
from covey_server.db.tables.devices import Certificate, ClaimTokenRow, Device, Group, GroupMember, RenewalRequest
from covey_server.db.tables.models import Blob, Build, Model, Version
from covey_server.db.tables.notifications import Delivery, Notice, Webhook
from covey_server.db.tables.people import ApiToken, AuditEntry, ConsoleSession, LoginAttempt, Person, Setting
from covey_server.db.tables.samples import Sample, SampleFetch

__all__ = [
    "ApiToken",
    "AssignmentRow",
    "AuditEntry",
    "Base",
    "Blob",
    "Build",
    "Campaign",
    "CampaignChoice",
    "CampaignDevice",
    "CampaignEvent",
    "Certificate",
    "ClaimTokenRow",
    "ConsoleSession",
    "Delivery",
    "Desired",
    "Device",
    "Group",
    "GroupMember",
    "Id",
    "LoginAttempt",
    "Model",
    "Notice",
    "Person",
    "MovedDevice",
    "RenewalRequest",
    "ReportRow",
    "Reported",
    "Sample",
    "SampleFetch",
    "Setting",
    "TelemetryRow",
    "Version",
    "Webhook",
]
