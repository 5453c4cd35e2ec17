"""Everything of the console that has an address. Include `router`; it brings its own static files."""

from __future__ import annotations

from fastapi import APIRouter

from covey_server.console import (
    assets,
    audit_pages,
    builder_pages,
    campaign_pages,
    device_pages,
    fleet_pages,
    group_pages,
    live_pages,
    login,
    model_pages,
    settings_pages,
    webhook_pages,
)

router = APIRouter(include_in_schema=False)
for part in (
    assets,
    login,
    live_pages,
    fleet_pages,
    device_pages,
    group_pages,
    model_pages,
    builder_pages,
    campaign_pages,
    audit_pages,
    settings_pages,
    webhook_pages,
):
    router.include_router(part.router)
