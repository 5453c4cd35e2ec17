"""The console's own style and script, and the libraries beside them; all from this package, nothing from elsewhere.

A file's address carries a fingerprint of all of them, so that browsers may keep it until the next version.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

from covey_server.console.html import ENVIRONMENT, ConsoleRoute
from covey_server.errors import NotFound

STATIC = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEEP = {"Cache-Control": "public, max-age=31536000, immutable"}

router = APIRouter(route_class=ConsoleRoute)


@cache
def files() -> dict[str, Path]:
    """The files that may be asked for, by their names below `static`."""
    found = (path for path in STATIC.rglob("*") if path.suffix in _TYPES and path.is_file())
    return {path.relative_to(STATIC).as_posix(): path for path in sorted(found)}


@cache
def fingerprint() -> str:
    digest = hashlib.sha256()
    for name, path in files().items():
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def address(name: str) -> str:
    """The address of a static file, for templates."""
    return f"/static/{fingerprint()}/{name}"


ENVIRONMENT.globals["static"] = address


@router.get("/static/{version}/{name:path}")
def static(version: str, name: str) -> FileResponse:
    """An old fingerprint gets the present file, uncached: a page that was loaded before an update asks so."""
    path = files().get(name)
    if path is None:
        raise NotFound(f"there is no file {name[:80]!r}")
    headers = _KEEP if version == fingerprint() else {"Cache-Control": "no-cache"}
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)
