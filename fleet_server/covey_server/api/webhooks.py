"""Webhooks and e-mail: who is told of what, and how far telling has got."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server import audit
from covey_server.api.paging import Limit, Number, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import Delivery, Notice, Webhook
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized, Unavailable
from covey_server.notifications import destination, outbox, signing
from covey_server.notifications.events import EMAIL_PATTERN, EVENTS, EventName
from covey_server.notifications.sealing import Seal
from covey_server.notifications.service import sealed_for
from covey_server.problems import responses
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["notifications"], responses=responses(Unauthorized, Forbidden))

Admin = Annotated[Actor, Depends(require("admin"))]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Path(pattern=NAME_PATTERN)]
Url = Annotated[str, Field(max_length=destination.MAX_URL, examples=["https://hooks.factory.example/covey"])]
Events = Annotated[list[EventName], Field(max_length=len(EVENTS), description="what it is told of; empty: all")]
State = Literal["pending", "delivered", "dead"]
STATES: tuple[State, ...] = get_args(State)
MAX_WEBHOOKS = 100


class NewWebhook(BaseModel):
    name: str = Field(pattern=NAME_PATTERN, examples=["chat"])
    url: Url
    events: Events = []
    secret: str | None = Field(
        default=None, max_length=128, description="whsec_ and the base64 of 24 to 64 bytes; by default one is made"
    )


class WebhookChange(BaseModel):
    """What is not given stays as it is."""

    url: Url | None = None
    events: Events | None = None
    disabled: bool | None = None


class WebhookView(BaseModel):
    name: str
    url: str
    events: list[str]
    created_ms: int
    created_by: str
    disabled_ms: int | None
    disabled_why: str
    previous_secret_until_ms: int | None = Field(
        description="until when messages are signed by the secret before as well"
    )


class SecretView(WebhookView):
    secret: str = Field(description="it is never shown again; messages are signed by it (standardwebhooks.com)")


class Rotation(BaseModel):
    overlap_s: int = Field(
        default=86_400, ge=0, le=30 * 86_400, description="how long messages are signed by the old secret as well"
    )


class DeliveryView(BaseModel):
    id: int
    event: str
    summary: str
    at_ms: int = Field(description="when it happened")
    message: str = Field(description="the header webhook-id; the same in every attempt")
    webhook: str | None
    recipient: str | None = Field(description="an e-mail address, where it is no webhook")
    state: State = Field(description="dead: given up")
    attempts: int
    due_ms: int | None = Field(description="when it is tried (again)")
    status: int | None = Field(description="of the last HTTP answer")
    error: str
    duration_ms: int | None
    finished_ms: int | None


class MailTest(BaseModel):
    recipient: str = Field(pattern=EMAIL_PATTERN, max_length=254)


@router.get("/webhooks", summary="List the webhooks")
def list_webhooks(use: Use, _: Admin) -> Page[WebhookView]:
    with use.database.reading() as session:
        found = session.scalars(select(Webhook).order_by(Webhook.name).limit(MAX_WEBHOOKS)).all()
    return Page(items=[_view(one) for one in found])


@router.post("/webhooks", summary="Add a webhook", status_code=201, responses=responses(Conflict, Invalid))
def add_webhook(use: Use, body: NewWebhook, actor: Admin) -> SecretView:
    """Its receiver is told by POST requests that are signed after Standard Webhooks. Private addresses and plain HTTP only
    where the setting webhook_private allows it; redirects are not followed."""
    _check_url(use, body.url)
    secret = body.secret or signing.new_secret()
    try:
        signing.key_of(secret)
    except ValueError as error:
        raise Invalid(str(error), field="secret") from error
    now_ms = use.clock()
    with use.database.session() as session:
        if session.scalar(select(Webhook.id).where(Webhook.name == body.name)) is not None:
            raise Conflict(f"there is a webhook {body.name!r} already")
        if len(session.scalars(select(Webhook.id).limit(MAX_WEBHOOKS)).all()) >= MAX_WEBHOOKS:
            raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already", code="too_many_webhooks")
        hook = Webhook(
            name=body.name,
            url=body.url,
            events=_once(body.events),
            secret=_seal(use).seal(secret, sealed_for(body.name)),
            created_ms=now_ms,
            created_by=actor.name,
        )
        session.add(hook)
        session.flush()
        # Without the address, which may hold a secret.
        audit.record(session, actor, "webhook.add", body.name, {"events": hook.events}, now_ms)
    return SecretView(**_view(hook).model_dump(), secret=secret)


@router.get("/webhooks/{name}", summary="Show a webhook", responses=responses(NotFound))
def show_webhook(use: Use, name: Name, _: Admin) -> WebhookView:
    with use.database.reading() as session:
        return _view(_find(session, name))


@router.patch("/webhooks/{name}", summary="Change a webhook", responses=responses(NotFound, Invalid))
def change_webhook(use: Use, name: Name, body: WebhookChange, actor: Admin) -> WebhookView:
    if body.url is not None:
        _check_url(use, body.url)
    now_ms = use.clock()
    with use.database.session() as session:
        hook = _find(session, name)
        changed: dict[str, object] = {}
        if body.url is not None and body.url != hook.url:
            hook.url, changed["url"] = body.url, "another"
        if body.events is not None and _once(body.events) != hook.events:
            hook.events = _once(body.events)
            changed["events"] = hook.events
        if body.disabled is not None and body.disabled != (hook.disabled_ms is not None):
            hook.disabled_ms, hook.disabled_why = (now_ms, f"by {actor.name}") if body.disabled else (None, "")
            changed["disabled"] = body.disabled
        if changed:
            audit.record(session, actor, "webhook.change", name, changed, now_ms)
    return _view(hook)


@router.delete("/webhooks/{name}", summary="Remove a webhook", status_code=204, responses=responses(NotFound))
def remove_webhook(use: Use, name: Name, actor: Admin) -> None:
    """With what was still to be delivered to it."""
    now_ms = use.clock()
    with use.database.session() as session:
        session.delete(_find(session, name))
        audit.record(session, actor, "webhook.remove", name, {}, now_ms)


@router.post("/webhooks/{name}/secret", summary="Change a webhook's secret", responses=responses(NotFound))
def rotate_secret(use: Use, name: Name, body: Rotation, actor: Admin) -> SecretView:
    """For a while messages are signed by both, so that the receiver can be changed without a gap."""
    secret, now_ms = signing.new_secret(), use.clock()
    with use.database.session() as session:
        hook = _find(session, name)
        hook.previous_secret = hook.secret if body.overlap_s else None
        hook.previous_until_ms = now_ms + body.overlap_s * 1000 if body.overlap_s else None
        hook.secret = _seal(use).seal(secret, sealed_for(name))
        audit.record(session, actor, "webhook.rotate", name, {"overlap_s": body.overlap_s}, now_ms)
    return SecretView(**_view(hook).model_dump(), secret=secret)


@router.post(
    "/webhooks/{name}/test",
    summary="Send a test to a webhook",
    status_code=202,
    responses=responses(NotFound, Conflict),
)
def test_webhook(use: Use, name: Name, actor: Admin) -> DeliveryView:
    """It is sent at once; ask for the delivery to see what came of it."""
    now_ms = use.clock()
    with use.database.session() as session:
        hook = _find(session, name)
        if hook.disabled_ms is not None:
            raise Conflict(f"webhook {name} is disabled", code="disabled")
        made = outbox.tell_one(session, f"a test, asked for by {actor.name}", now_ms, webhook_id=hook.id)
        audit.record(session, actor, "webhook.test", name, {}, now_ms)
        view = _deliveries(session, only=made)[0]
    _wake(use)
    return view


@router.post("/mail-test", summary="Send a test by e-mail", status_code=202, responses=responses(Invalid))
def test_mail(use: Use, body: MailTest, actor: Admin) -> DeliveryView:
    if not use.settings.smtp_host:
        raise Invalid("no mail server is set (smtp_host)", code="no_mail_server")
    now_ms = use.clock()
    with use.database.session() as session:
        made = outbox.tell_one(session, f"a test, asked for by {actor.name}", now_ms, recipient=body.recipient)
        audit.record(session, actor, "mail.test", body.recipient, {}, now_ms)
        view = _deliveries(session, only=made)[0]
    _wake(use)
    return view


@router.get("/deliveries", summary="List what was or is to be delivered, newest first", responses=responses(NotFound))
def list_deliveries(
    use: Use,
    _: Admin,
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, le=1 << 53, description="`next` of the page before")] = None,
    webhook: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    state: State | None = None,
) -> Page[DeliveryView]:
    with use.database.reading() as session:
        hook = None if webhook is None else _find(session, webhook).id
        items = _deliveries(session, limit=limit + 1, before=before, webhook_id=hook, state=state)
    return Page(items=items[:limit], next=str(items[limit - 1].id) if len(items) > limit else None)


@router.get("/deliveries/{number}", summary="Show a delivery", responses=responses(NotFound))
def show_delivery(use: Use, number: Number, _: Admin) -> DeliveryView:
    with use.database.reading() as session:
        found = _deliveries(session, only=number)
    if not found:
        raise NotFound(f"there is no delivery {number}")
    return found[0]


@router.post(
    "/deliveries/{number}/retry", summary="Deliver again what was given up", responses=responses(NotFound, Conflict)
)
def retry_delivery(use: Use, number: Number, actor: Admin) -> DeliveryView:
    now_ms = use.clock()
    with use.database.session() as session:
        delivery = session.get(Delivery, number, with_for_update=True)
        if delivery is None:
            raise NotFound(f"there is no delivery {number}")
        if delivery.state == outbox.DELIVERED:
            raise Conflict(f"delivery {number} has been delivered")
        delivery.state, delivery.attempts, delivery.due_ms, delivery.finished_ms = outbox.PENDING, 0, now_ms, None
        session.flush()
        audit.record(session, actor, "delivery.retry", str(number), {}, now_ms)
        view = _deliveries(session, only=number)[0]
    _wake(use)
    return view


def _find(session: Session, name: str) -> Webhook:
    found = session.scalar(select(Webhook).where(Webhook.name == name))
    if found is None:
        raise NotFound(f"there is no webhook {name}")
    return found


def _check_url(use: Services, url: str) -> None:
    """What can be told without looking the name up; whether its address is private is judged at each delivery."""
    try:
        destination.parse(url, private=use.settings.webhook_private)
    except destination.BadDestinationError as error:
        raise Invalid(f"url: {error}", field="url", code="bad_destination") from error


def _seal(use: Services) -> Seal:
    if use.seal is None:
        raise Unavailable("this server has no key to seal secrets by")
    return use.seal


def _wake(use: Services) -> None:
    if use.notifications is not None:
        use.notifications.wake()


def _once(events: list[EventName]) -> list[str]:
    return sorted(set(events))


def _view(hook: Webhook) -> WebhookView:
    return WebhookView(
        name=hook.name,
        url=hook.url,
        events=list(hook.events),
        created_ms=hook.created_ms,
        created_by=hook.created_by,
        disabled_ms=hook.disabled_ms,
        disabled_why=hook.disabled_why,
        previous_secret_until_ms=hook.previous_until_ms,
    )


def _deliveries(
    session: Session,
    *,
    only: int | None = None,
    limit: int = 1,
    before: int | None = None,
    webhook_id: int | None = None,
    state: str | None = None,
) -> list[DeliveryView]:
    query = (
        select(Delivery, Notice, Webhook.name)
        .join(Notice, Notice.id == Delivery.notice_id)
        .outerjoin(Webhook, Webhook.id == Delivery.webhook_id)
        .order_by(Delivery.id.desc())
        .limit(limit)
    )
    if only is not None:
        query = query.where(Delivery.id == only)
    if before is not None:
        query = query.where(Delivery.id < before)
    if webhook_id is not None:
        query = query.where(Delivery.webhook_id == webhook_id)
    if state is not None:
        query = query.where(Delivery.state == state)
    return [_delivery_view(delivery, notice, name) for delivery, notice, name in session.execute(query)]


def _state(text: str) -> State:
    return next(state for state in STATES if state == text)


def _delivery_view(delivery: Delivery, notice: Notice, webhook: str | None) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        event=notice.event,
        summary=notice.summary,
        at_ms=notice.at_ms,
        message=notice.key,
        webhook=webhook,
        recipient=delivery.recipient,
        state=_state(delivery.state),
        attempts=delivery.attempts,
        due_ms=delivery.due_ms if delivery.state == outbox.PENDING else None,
        status=delivery.status,
        error=delivery.error,
        duration_ms=delivery.duration_ms,
        finished_ms=delivery.finished_ms,
    )
