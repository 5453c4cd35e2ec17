"""What the application answers to: the routers of the API, the console, and the OpenAPI document that describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import StatelessLifespan

import covey_contract
from covey_server import problems
from covey_server.api import (
    audit,
    builds,
    bundles,
    campaigns,
    claim_tokens,
    delivery,
    devices,
    enrol,
    est,
    groups,
    health,
    jobs,
    metrics,
    models,
    people,
    renewals,
    samples,
    tokens,
    uploads,
    webhooks,
)
from covey_server.console import routes as console
from covey_server.errors import Invalid
from covey_server.releases import door as releases

DOCUMENT_URL = "/api/v1/openapi.json"
_DESCRIPTION = """\
The fleet server of Covey: models are pushed, built for every kind of device, signed, and rolled out to devices in stages.

**Authentication**: `Authorization: Bearer TOKEN`. The first token lies in the file `admin-token` of the server's data folder;
`POST /api/v1/tokens` makes further ones. Roles: viewer; operator and approver, who are viewers too; admin, who may do
all; worker, for build workers.

**Conventions**: JSON in snake_case. Times end in `_ms` and are Unix times in milliseconds. Lists are
`{"items": [...], "next": CURSOR or null}`; pass `after=CURSOR` for the next page. Errors are problem documents (RFC 9457) with a
stable `code` and, where the request was wrong, the `field`.
"""
_TAGS = [
    {"name": "models", "description": "Models and their versions: push, list, show."},
    {"name": "builds", "description": "What versions were built into, how well, and why not."},
    {"name": "jobs", "description": "For build workers: lease a job, deliver what came of it."},
    {"name": "devices", "description": "Devices: how they join, facts, profile, what they run, and why."},
    {"name": "groups", "description": "Groups of devices: fixed lists or selectors."},
    {"name": "samples", "description": "Samples of what devices were asked and answered, for labelling."},
    {"name": "campaigns", "description": "Staged rollouts: plan, start, watch, stop, go back."},
    {"name": "people", "description": "People, their logins, and API tokens."},
    {"name": "notifications", "description": "Who is told of what happens: webhooks and e-mail."},
    {"name": "audit", "description": "Who did what, when, from where; hash-chained."},
    {"name": "releases", "description": "What has been released, in the metadata of The Update Framework."},
    {"name": "health", "description": "For load balancers."},
    {"name": "metrics", "description": "For Prometheus."},
]
# In the order of the document.
_API = (
    models,
    uploads,
    builds,
    jobs,
    devices,
    delivery,
    bundles,
    groups,
    claim_tokens,
    enrol,
    est,
    renewals,
    samples,
    campaigns,
    people,
    tokens,
    webhooks,
    audit,
    releases,
    health,
    metrics,
)


def application(lifespan: StatelessLifespan[FastAPI] | None = None) -> FastAPI:
    """The application without services: enough for its OpenAPI document."""
    app = FastAPI(
        title="Covey fleet server",
        version=covey_contract.__version__,
        description=_DESCRIPTION,
        openapi_url=DOCUMENT_URL,
        openapi_tags=_TAGS,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    problems.install(app)
    for module in _API:
        app.include_router(module.router, responses=problems.responses(Invalid))
    app.include_router(console.router)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's documented way to change the document
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1, with errors under the media type that they really have."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        for path in document["paths"].values():
            for operation in path.values():
                if "parameters" not in operation and "requestBody" not in operation:
                    operation["responses"].pop(str(Invalid.status), None)
                for status, response in operation.get("responses", {}).items():
                    content = response.get("content", {})
                    if status >= "400" and "application/json" in content:
                        content[problems.MEDIA_TYPE] = content.pop("application/json")
        app.openapi_schema = document
    return app.openapi_schema
