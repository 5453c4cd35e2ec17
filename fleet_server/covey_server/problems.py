"""Every error leaves as a problem document (RFC 9457), whoever raised it; never a traceback.

`type` is `urn:covey:problem:CODE`; `code` is the same slug for programs; `field` names what was wrong with the request. An
unexpected error is logged with an id, and the id is all that the caller gets.
"""

from __future__ import annotations

import errno
import http
import logging
import secrets
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from covey_contract.errors import ContractError
from covey_server.errors import Invalid, NotFound, ServerError, TooLarge, Unauthorized, Unavailable

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error as RFC 9457 has it. Further members depend on `code`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:covey:problem:not_found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "there is no model 'digits'",
                    "code": "not_found",
                }
            ]
        },
    )

    type: str = Field(description="`urn:covey:problem:` and the code")
    title: str = Field(description="what kind of error this is")
    status: int
    detail: str = Field(description="one sentence for people")
    code: str = Field(description="a slug for programs; it never changes")
    field: str | None = Field(default=None, description="what in the request is wrong")


def problem(error: ServerError) -> JSONResponse:
    """The error as a response."""
    body: dict[str, Any] = {
        "type": f"urn:covey:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        **error.extra,
    }
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    return JSONResponse(body, error.status, headers, MEDIA_TYPE)


def responses(*kinds: type[ServerError]) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a router or an endpoint: the problems it may answer with."""
    return {kind.status: {"description": kind.title, "model": Problem} for kind in kinds}


def install(app: FastAPI) -> None:
    """Render every error of this application as a problem."""
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(ContractError, _contract_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(OSError, _os_error)


def unexpected(error: Exception, request_id: str) -> JSONResponse:
    """The answer to an error that nobody foresaw. It is a fault of ours: logged with its traceback."""
    log.error("unexpected error in request %s", request_id, exc_info=error)
    return problem(
        ServerError(f"an unexpected error; the server's log tells more under {request_id}", request_id=request_id)
    )


def new_request_id() -> str:
    return secrets.token_hex(8)


def _server_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServerError):
        raise error
    return problem(error)


def _contract_error(_: Request, error: Exception) -> JSONResponse:
    return problem(Invalid(str(error)[:500], code="contract"))


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's own checks of paths, queries and bodies: the first failure in words, all of them in `errors`."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = [{"field": _field(one["loc"]), "detail": str(one["msg"])} for one in error.errors()[:20]]
    first = found[0] if found else {"field": "body", "detail": "it does not fit"}
    return problem(Invalid(f"{first['field']}: {first['detail']}", field=first["field"], errors=found))


def _field(location: tuple[int | str, ...]) -> str:
    """The dotted path of a field within body, query or path; these themselves where it is no field but all of it."""
    parts = [str(part) for part in location[1:]]
    whole = not parts or (len(location) == 2 and isinstance(location[1], int))  # JSON that cannot be read: a position
    return str(location[0]) if whole else ".".join(parts)


def _http_error(_: Request, error: Exception) -> JSONResponse:
    """What the framework itself says no to: an unknown path, a wrong method, a body it cannot parse."""
    if not isinstance(error, HTTPException):
        raise error
    title = http.HTTPStatus(error.status_code).phrase
    code = title.lower().replace(" ", "_").replace("-", "_")
    if error.status_code == NotFound.status:
        code, title = NotFound.code, NotFound.title
    if error.status_code == TooLarge.status:
        code, title = TooLarge.code, TooLarge.title
    body = {
        "type": f"urn:covey:problem:{code}",
        "title": title,
        "status": error.status_code,
        "detail": str(error.detail),
        "code": code,
    }
    return JSONResponse(body, error.status_code, error.headers, MEDIA_TYPE)


def _database_error(request: Request, error: Exception) -> JSONResponse:
    """The database is locked, gone or full: not the caller's fault, and worth another try."""
    request_id = str(request.scope.get("covey.request_id", ""))
    # Without the statement and its values, which may be long and are nobody's business.
    words = str(error.orig if isinstance(error, OperationalError) else error).partition("\n")[0]
    log.error("database error in request %s: %s", request_id, words)
    if "disk is full" in words:
        return _disk_full()
    return problem(Unavailable("the database cannot be used just now", code="database", request_id=request_id))


def _os_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return unexpected(error, str(request.scope.get("covey.request_id", "")))
    log.error("the server's disk is full")
    return _disk_full()


def _disk_full() -> JSONResponse:
    return problem(Unavailable("the server's disk is full; nothing was kept", code="disk_full"))
