"""Webhooks in the settings: who is told of what, a test, and what came of the last deliveries."""

from __future__ import annotations

from typing import Annotated

import pydantic
from fastapi import APIRouter, Form, Query, Request, Response

from covey_server.api import webhooks as api
from covey_server.api.webhooks import Admin
from covey_server.console import html
from covey_server.console.html import ConsoleRoute
from covey_server.console.i18n import gettext as _
from covey_server.errors import Invalid
from covey_server.notifications.events import EVENTS
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute, prefix="/settings/webhooks")

Text = Annotated[str, Form(max_length=4096)]
Events = Annotated[list[str] | None, Form(max_length=len(EVENTS))]
DELIVERIES = 30


@router.get("")
def show(
    request: Request, use: Use, actor: Admin, before: Annotated[int | None, Query(ge=1, le=1 << 53)] = None
) -> Response:
    return html.page(
        request,
        "settings_webhooks.html",
        now=use.clock(),
        hooks=api.list_webhooks(use, actor).items,
        deliveries=api.list_deliveries(use, actor, limit=DELIVERIES, before=before),
        events=EVENTS,
    )


@router.post("")
def add(request: Request, use: Use, actor: Admin, name: Text = "", url: Text = "", events: Events = None) -> Response:
    """The secret by which its messages are signed is shown, once."""
    try:
        body = api.NewWebhook.model_validate({"name": name.strip(), "url": url.strip(), "events": events or []})
    except pydantic.ValidationError as error:
        raise Invalid(_("a webhook has a name (letters, digits, . _ -) and an address")) from error
    return _secret(request, api.add_webhook(use, body, actor))


@router.post("/{name}/test")
def test(use: Use, actor: Admin, name: str) -> Response:
    api.test_webhook(use, name, actor)
    return _back()


@router.post("/{name}/switch")
def switch(use: Use, actor: Admin, name: str, disabled: Annotated[bool, Form()] = False) -> Response:
    api.change_webhook(use, name, api.WebhookChange(disabled=disabled), actor)
    return _back()


@router.post("/{name}/secret")
def rotate(request: Request, use: Use, actor: Admin, name: str) -> Response:
    return _secret(request, api.rotate_secret(use, name, api.Rotation(), actor))


@router.post("/{name}/remove")
def remove(use: Use, actor: Admin, name: str) -> Response:
    api.remove_webhook(use, name, actor)
    return _back()


@router.post("/deliveries/{number}/retry")
def retry(use: Use, actor: Admin, number: int) -> Response:
    api.retry_delivery(use, number, actor)
    return _back()


def _secret(request: Request, made: api.SecretView) -> Response:
    return html.page(request, "settings_webhook_secret.html", name=made.name, secret=made.secret)


def _back() -> Response:
    return Response(status_code=204, headers={"HX-Redirect": "/settings/webhooks"})
