"""Everything that a request or a background thread may need, built once by `covey_server.app.build_services`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.notifications.sealing import Seal
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.registry.uploads import Uploads
from covey_server.registry.workers import Workers
from covey_server.settings import Settings
from covey_server.tracing.spans import OFF, Tracing

if TYPE_CHECKING:
    # Only for the types: what these import needs this module in turn.
    from covey_server.campaigns.service import CampaignService
    from covey_server.fleet.service import FleetService
    from covey_server.notifications.service import NotificationService
    from covey_server.releases.releases import Releases


@dataclass
class Services:
    """The server's parts. `fleet`, `campaigns`, `notifications` and `seal` are None only where a tool uses the database alone."""

    settings: Settings
    clock: Clock
    database: Database
    bus: Bus
    blobs: BlobStore
    keys: SigningKeys
    fleet: FleetService | None = None
    campaigns: CampaignService | None = None
    workers: Workers = field(default_factory=Workers)
    releases: Releases | None = None  # likewise
    notifications: NotificationService | None = None
    seal: Seal | None = None
    tracing: Tracing = OFF

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.settings.data / "uploads", self.settings.upload_max_bytes)


def services(request: HTTPConnection) -> Services:
    """The dependency: `use: Annotated[Services, Depends(services)]`, or `Use` for short."""
    found = request.app.state.services
    if not isinstance(found, Services):
        raise TypeError("the application has no services")
    return found


Use = Annotated[Services, Depends(services)]
