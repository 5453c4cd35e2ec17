"""Templates, and how console pages answer: HTML for people, in their language, also when something goes wrong.

Invariants: autoescape is on for every template; nothing inline (no script, no style attribute), since the content security
policy forbids it; who is not logged in is sent to the login page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse

from covey_contract.errors import ContractError
from covey_server import __version__
from covey_server.api.security import Identity
from covey_server.console import gate_view, i18n, sentences, states, words
from covey_server.console.i18n import gettext as _
from covey_server.console.i18n import noted
from covey_server.errors import Invalid, ServerError, Unauthorized

HERE = Path(__file__).parent
_NOTHING = Markup("–")
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "covey_theme"
# Address, text, and the beginnings of further addresses that belong to it.
NAVIGATION = (
    ("/", noted("Fleet"), ()),
    ("/devices", noted("Devices"), ()),
    ("/groups", noted("Groups"), ("/new-group",)),
    ("/models", noted("Models"), ("/builds", "/push")),
    ("/campaigns", noted("Campaigns"), ("/new-campaign",)),
    ("/audit", noted("Audit"), ()),
    ("/settings", noted("Settings"), ()),
)


def _timestamp(at_ms: int | None, now_ms: int) -> Markup:
    """Relative, with the exact time in the title; the page's script keeps it true and tells it in the viewer's zone."""
    if at_ms is None:
        return _NOTHING
    return Markup('<time datetime="{}" title="{}" data-ms="{}">{}</time>').format(
        words.iso(at_ms), words.absolute(at_ms), at_ms, words.ago(now_ms - at_ms)
    )


def _moment(at_ms: int | None) -> Markup:
    """The exact time; the page's script puts it into the viewer's zone."""
    if at_ms is None:
        return _NOTHING
    return Markup('<time datetime="{}" data-at="{}">{}</time>').format(words.iso(at_ms), at_ms, words.absolute(at_ms))


def _query(given: dict[str, str], **changed: str) -> str:
    """A query of what is given and not empty, with some values changed, for links that keep the filters."""
    return urlencode({name: value for name, value in {**given, **changed}.items() if value})


def _current(here: str, address: str, more: tuple[str, ...]) -> bool:
    if address == "/":
        return here == "/"
    return any(here == one or here.startswith(one + "/") for one in (address, *more))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        extensions=["jinja2.ext.i18n", "jinja2.ext.do"],
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(  # type: ignore[attr-defined]  # the extension adds it
        i18n.gettext, i18n.ngettext, newstyle=True, pgettext=i18n.pgettext, npgettext=i18n.npgettext
    )
    environment.filters.update(
        ms=words.milliseconds,
        bytes=words.size,
        percent=words.percent,
        number=words.number,
        decimal=words.decimal,
        times=words.factor,
        devices=words.devices,
        requests=words.requests,
        duration=words.duration,
        named=states.name,
        role=states.role,
        action=states.action,
        event=states.event,
        sentence=sentences.sentence,
        entry=words.entry,
        span=words.span,
        gate=gate_view.gate_name,
        evidence=gate_view.evidence,
        shift=gate_view.shift,
        allows=gate_view.allows,
        curves=gate_view.curves,
        log10=gate_view.log10,
        path=lambda text: quote(str(text), safe=""),
        pretty=lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False),
        json=lambda value: json.dumps(value, separators=(",", ":"), allow_nan=False),
    )
    environment.globals.update(
        look=states.look,
        event_tone=states.event_tone,
        drop=words.points,
        when=_timestamp,
        moment=_moment,
        query=_query,
        navigation=NAVIGATION,
        is_current=_current,
        covey_version=__version__,
        languages=i18n.LANGUAGES,
        language=i18n.current,
        themes=THEMES,
        script_words=_script_words,
    )
    environment.globals["parts"] = environment.get_template("parts.html").module
    environment.globals["gates"] = environment.get_template("gates.html").module
    return environment


def _script_words() -> dict[str, Any]:
    """What the page's script says by itself."""
    return {
        "ago": words.ago_words(),
        "live": _("live"),
        "lost": _("connection lost, trying again"),
        "failed": _("That did not work."),
        "silent": _("The server does not answer."),
        "sent": _("%(done)s of %(total)s sent"),
        "checking": _("sent; the server looks at it"),
        "copied": _("copied"),
    }


ENVIRONMENT = _environment()


def render(template: str, **context: Any) -> str:
    """In the language of `i18n.current`."""
    return ENVIRONMENT.get_template(template).render(**context)


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page. `request.state.identity` is there after `require`; pages before the login have none."""
    identity: Identity | None = getattr(request.state, "identity", None)
    actor = identity.actor if identity is not None else None
    csrf = (identity.csrf or "") if identity is not None else ""
    theme = request.cookies.get(THEME_COOKIE, "")
    where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    shown = render(
        template,
        actor=actor,
        csrf=csrf,
        here=request.url.path,
        where_now=where if request.method == "GET" else "/",
        theme=theme if theme in THEMES else THEMES[0],
        **context,
    )
    # What a shared cache must tell apart; there is none for pages, but tools that look at them ask.
    return HTMLResponse(shown, status, headers={"Vary": "Cookie, Accept-Language", "Content-Language": i18n.current()})


def wants_fragment(request: Request) -> bool:
    """Whether htmx asks, on behalf of a part of a page."""
    return request.headers.get("hx-request") == "true"


class ConsoleRoute(APIRoute):
    """Speaks the language that the request asks for. Answers errors with a page, or, where htmx asks, with the sentence that
    its notice shows."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            i18n.speak(i18n.language_of(request))
            try:
                return await handle(request)
            except ServerError as error:
                return _error(request, error)
            except ContractError as error:
                return _error(request, Invalid(str(error)[:500]))
            except RequestValidationError as error:
                return _error(request, Invalid(_first(error)))
            except HTTPException as error:
                # A body that is too large or is no form, told by the framework.
                return _error_page(request, error.status_code, noted("Cannot do that"), error.detail)

        return answer


def _first(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"


# The titles of `covey_server.errors`, for the catalogue.
_TITLES = (
    noted("Internal error"),
    noted("Invalid request"),
    noted("Not authenticated"),
    noted("Not allowed"),
    noted("Not found"),
    noted("Conflict"),
    noted("Too large"),
    noted("Too many requests"),
    noted("Not available now"),
)


def _error(request: Request, error: ServerError) -> Response:
    if isinstance(error, Unauthorized):
        if wants_fragment(request):
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        if request.method == "GET":
            where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(where, safe='')}", 303)
    return _error_page(request, error.status, error.title, error.detail)


def _error_page(request: Request, status: int, title: str, detail: str) -> Response:
    detail = sentences.sentence(detail)
    if wants_fragment(request):
        return Response(detail, status, media_type="text/plain; charset=utf-8")
    return page(request, "error.html", status=status, title=_(title), detail=detail, status_code=status)
