"""Bundles: orders and all that is needed to follow them as one file, for devices that have no network."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.bundle import SUFFIX
from covey_contract.manifest import Manifest
from covey_contract.wire import decode
from covey_server import audit
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import Build
from covey_server.errors import Conflict, Forbidden, NotFound, Unauthorized, Unavailable
from covey_server.fleet.bundles import SignedOrder, written
from covey_server.fleet.directory import get_device
from covey_server.problems import responses
from covey_server.releases.carried import files_for
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["devices"], responses=responses(Unauthorized, Forbidden))

_MOST_DEVICES = 500


class BundleBody(BaseModel):
    """Whose orders, and of which model; default: of every model."""

    model_config = ConfigDict(extra="forbid")

    devices: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=_MOST_DEVICES)
    model: str | None = Field(default=None, max_length=64)


@router.post(
    "/bundles",
    summary="Orders and builds as one file, for devices without a network",
    description="All orders of these devices that are not done yet, the signed metadata and the builds' files: what `covey-agent install` "
    "takes on the device. It is good until the orders expire or the metadata does, whichever is first.",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
        **responses(NotFound, Conflict, Unavailable),
    },
)
def make_bundle(use: Use, body: BundleBody, actor: Annotated[Actor, Depends(require("operator"))]) -> StreamingResponse:
    if use.fleet is None or use.releases is None:
        raise Unavailable("this server has no fleet, or no repository of releases")
    devices = sorted(set(body.devices))
    with use.database.reading() as session:
        for device in devices:
            if get_device(session, device).revoked_ms is not None:
                raise Conflict(f"{device} is revoked", code="device_revoked")
    orders = use.fleet.orders_of(devices, body.model)
    if not orders:
        raise Conflict("these devices have no orders that are not done; `assign` gives one", code="nothing_to_install")
    metadata = files_for(use.releases, {order.model for order in orders})
    with use.database.session() as session:
        files = _files(use, session, orders)
        for order in orders:
            audit.record(
                session, actor, "device.bundle", order.device, {"model": order.model, "build": order.build}, use.clock()
            )
    name = f"{devices[0] if len(devices) == 1 else 'devices'}{SUFFIX}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    content = written(orders, metadata, files, use.blobs)
    return StreamingResponse(content, media_type="application/zip", headers=headers)


def _files(use: Services, session: Session, orders: list[SignedOrder]) -> list[str]:
    """The files of all builds that are named, each once, those of a build together. Raises `NotFound` if one is gone."""
    files: dict[str, None] = {}
    for build in dict.fromkeys(order.build for order in orders):
        manifest = session.scalar(select(Build.manifest).where(Build.digest == build))
        if manifest is None:
            raise NotFound(f"build {build[:12]} is gone")
        for entry in decode(Manifest, manifest).wire_files():
            use.blobs.size(entry.sha256)  # raises, before anything is sent
            files[entry.sha256] = None
    return list(files)
