"""Whether the server lives, and whether it can work. For load balancers: no token needed, nothing told but that."""

from __future__ import annotations

import os

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from covey_server.errors import Unavailable
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str = "ok"


@router.get("/healthz", summary="Is the server alive?")
def healthz() -> Health:
    return Health()


@router.get(
    "/readyz", summary="Can the server work? Database, files, broker, releases", responses=responses(Unavailable)
)
def readyz(use: Use) -> Health:
    failing = []
    try:
        with use.database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        failing.append("database")
    if not os.access(use.settings.data, os.W_OK):
        failing.append("files")
    if use.fleet is not None and not use.fleet.health().ready:
        failing.append("broker")
    if use.releases is not None and any(row.expired for row in use.releases.status()):
        failing.append("releases")
    if failing:
        raise Unavailable(f"not ready: {', '.join(failing)}", code="not_ready", failing=failing)
    return Health()
