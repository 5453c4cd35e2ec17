"""The pages of devices: the list, one device, what an operator may change of it, and how a new one joins."""

from __future__ import annotations

import shlex
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import RedirectResponse

from covey_contract.messages import CommandKind
from covey_server.api import claim_tokens, renewals, samples
from covey_server.api import devices as api
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import device_view, html, live
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer, live_page
from covey_server.errors import Invalid
from covey_server.fleet import groups
from covey_server.samples import archive
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

Operator = Annotated[Actor, Depends(require("operator"))]
LOG_LINES = 300
SAMPLES = 1000
_MAX_TEXT = 20_000


@router.get("/devices")
def devices(request: Request, use: Use, _: Viewer) -> Response:
    given = live.parameters_of("devices", request.query_params)
    with use.database.reading() as session:
        choices = device_view.choices(session)
    return live_page(request, use, "devices", given, "devices.html", choices=choices)


@router.get("/devices/{name}")
def device(request: Request, use: Use, name: str, _: Viewer) -> Response:
    return live_page(request, use, "device", {"name": name}, "device.html")


@router.post("/devices/{name}/labels")
def labels(use: Use, name: str, actor: Operator, labels: Annotated[str, Form(max_length=_MAX_TEXT)] = "") -> Response:
    """Those of the form are the labels from now on; what is not among them is taken away."""
    wanted = named_values(labels, "labels")
    with use.database.reading() as session:
        held = device_view.labels(session, name)
    changes: dict[str, str | None] = {label: None for label in held if label not in wanted}
    changes |= {label: value for label, value in wanted.items() if held.get(label) != value}
    if changes:
        api.patch_device(use, name, api.DevicePatch(labels=changes), actor)
    return RedirectResponse(f"/devices/{name}", 303)


@router.post("/devices/{name}/revoke")
def revoke(use: Use, fleet: api.Fleet, name: str, actor: Operator) -> Response:
    api.revoke_device(use, fleet, name, actor)
    return Response(status_code=204, headers={"HX-Refresh": "true"})


@router.post("/devices/{name}/renewal")
def renewal(
    use: Use,
    name: str,
    actor: Operator,
    key: Annotated[str, Form(max_length=64)],
    decision: Annotated[str, Form(max_length=16)],
) -> Response:
    """Approve or refuse the key that asks for the device's certificate."""
    if decision not in ("approve", "refuse"):
        raise Invalid("the decision is approve or refuse", field="decision")
    body = renewals.Decision(decision="approve" if decision == "approve" else "refuse", key=key)
    renewals.decide_renewal(use, name, body, actor)
    return Response(status_code=204, headers={"HX-Refresh": "true"})


@router.post("/devices/{name}/logs")
def logs(request: Request, use: Use, fleet: api.Fleet, name: str, actor: Operator) -> Response:
    """The end of the agent's log, from the device itself."""
    reply = api.command(use, fleet, name, api.CommandBody(kind=CommandKind.LOGS.value, lines=LOG_LINES), actor)
    return html.page(request, "device_log.html", text=reply.text, at_ms=reply.time_ms)


@router.post("/devices/{name}/samples")
def fetch_samples(use: Use, fleet: api.Fleet, name: str, actor: samples.Operator) -> Response:
    """Have them brought here; the page shows how far that is."""
    samples.fetch_samples(use, fleet, samples.FetchBody(device=name, limit=SAMPLES), actor)
    return Response(status_code=204)


@router.get("/devices/{name}/samples.zip")
def download_samples(use: Use, fleet: api.Fleet, name: str, actor: samples.Operator) -> Response:
    return samples.download_samples(use, fleet, actor, device=name, limit=archive.MAX_SAMPLES)


@router.post("/devices/{name}/samples/delete")
def delete_samples(use: Use, fleet: api.Fleet, name: str, actor: samples.Operator) -> Response:
    samples.delete_samples(use, fleet, actor, device=name)
    return Response(status_code=204)


@router.get("/new-device")
def new(request: Request, use: Use, _: Operator) -> Response:
    with use.database.reading() as session:
        fixed = groups.fixed_names(session)
    return html.page(request, "new_device.html", now=use.clock(), groups=fixed)


@router.post("/new-device")
def enrol(
    request: Request,
    use: Use,
    actor: Operator,
    device: Annotated[str, Form(max_length=64)] = "",
    group: Annotated[str, Form(max_length=64)] = "",
    labels: Annotated[str, Form(max_length=_MAX_TEXT)] = "",
) -> Response:
    """A claim token, shown once, in the command that uses it."""
    body = claim_tokens.NewClaimToken(
        device=device.strip() or None, groups=[group] if group else [], labels=named_values(labels, "labels")
    )
    made = claim_tokens.create_claim_token(use, body, actor)
    server = str(request.base_url).rstrip("/")
    state = device.strip() or "DEVICE"
    commands = [
        f"covey-agent enroll --server {server} --token {made.token} --state {shlex.quote(state)}",
        f"covey-agent run --state {shlex.quote(state)}",
    ]
    return html.page(
        request, "device_token.html", now=use.clock(), commands="\n".join(commands), expires_ms=made.expires_ms
    )


def named_values(text: str, field: str) -> dict[str, str]:
    """Lines of NAME=VALUE. Raises `Invalid` for one that is none.

    >>> named_values("line=a\\n\\nsite = north", "labels")
    {'line': 'a', 'site': 'north'}
    """
    found = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise Invalid(f"{line.strip()[:80]!r} is not NAME=VALUE", field=field)
        found[name.strip()] = value.strip()
    return found
