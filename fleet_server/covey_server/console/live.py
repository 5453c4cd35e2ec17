"""The live regions: for each page its template, what it shows, and which hints make it old.

A region's parameters come from the query of its address, checked here; the same parameters give the same region, whoever
looks, so that it is rendered once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from covey_server.campaigns import views as campaign_views
from covey_server.console import campaign_view, device_view, fleet_view, html, model_view
from covey_server.core.engine import DeviceState
from covey_server.errors import Invalid, NotFound
from covey_server.fleet.directory import DeviceFilter
from covey_server.fleet.standing import STANDINGS

_MAX_VALUE = 128
CAMPAIGNS = 50

Parameters = Mapping[str, str]
Context = dict[str, Any]


@dataclass(frozen=True)
class Live:
    """`keyed` topics count only if the hint names what the region shows."""

    template: str
    context: Callable[[Session, Parameters, int], Context]
    topics: frozenset[str]
    parameters: tuple[str, ...] = ()
    keyed: frozenset[str] = frozenset()

    def cares(self, topic: str, key: str, parameters: Parameters) -> bool:
        if topic not in self.topics:
            return False
        return topic not in self.keyed or key in ("", parameters.get("name", ""))


def _fleet(session: Session, _: Parameters, now_ms: int) -> Context:
    return {"fleet": fleet_view.fleet(session, now_ms)}


def _devices(session: Session, parameters: Parameters, _: int) -> Context:
    wanted = device_filter(parameters)
    return {"page": device_view.devices(session, wanted, parameters.get("after", "")), "filters": dict(parameters)}


def device_filter(parameters: Parameters) -> DeviceFilter:
    """Raises `Invalid` for a standing that is none."""
    connection = parameters.get("online", "")
    standing = parameters.get("standing") or None
    if standing is not None and standing not in STANDINGS:
        raise Invalid(f"{standing!r} is not how a device may stand", field="standing")
    model, _, version = parameters.get("runs", "").partition("@")
    return DeviceFilter(
        group=parameters.get("group") or None,
        profile=parameters.get("profile") or None,
        online={"yes": True, "no": False}.get(connection),
        revoked={"yes": False, "no": False, "revoked": True}.get(connection),
        model=model or parameters.get("model") or None,
        version=version or None,
        standing=standing,
        query=parameters.get("q") or None,
    )


def _device(session: Session, parameters: Parameters, now_ms: int) -> Context:
    return {"page": device_view.device(session, parameters.get("name", ""), now_ms)}


def _model(session: Session, parameters: Parameters, _: int) -> Context:
    return {"page": model_view.model(session, parameters.get("name", ""), parameters.get("version") or None)}


def _campaigns(session: Session, parameters: Parameters, _: int) -> Context:
    after = parameters.get("after", "0")
    if not after.isdecimal() or len(after) > 15:
        raise Invalid("after is the number of a campaign", field="after")
    items, following = campaign_views.list_campaigns(session, CAMPAIGNS, int(after))
    return {"items": items, "next": following, "filters": dict(parameters)}


def _campaign(session: Session, parameters: Parameters, now_ms: int) -> Context:
    state = parameters.get("state") or None
    if state is not None and state not in {one.value for one in DeviceState}:
        raise Invalid(f"{state!r} is no state of a device in a campaign", field="state")
    found = campaign_view.campaign(
        session,
        parameters.get("name", ""),
        now_ms,
        state=state,
        stage=parameters.get("stage") or None,
        drifted=parameters.get("drifted") == "yes",
        after=parameters.get("after", ""),
    )
    return {"page": found, "filters": dict(parameters)}


_ALL = frozenset({"device", "build", "campaign", "assignment", "telemetry"})

LIVE: dict[str, Live] = {
    "fleet": Live("fleet_live.html", _fleet, _ALL - {"build"}),
    "devices": Live(
        "devices_live.html",
        _devices,
        frozenset({"device", "assignment"}),
        ("q", "group", "profile", "online", "standing", "runs", "model", "after"),
    ),
    "device": Live(
        "device_live.html",
        _device,
        frozenset({"device", "telemetry", "assignment"}),
        ("name",),
        frozenset({"device", "telemetry"}),
    ),
    "model": Live("model_live.html", _model, frozenset({"build"}), ("name", "version")),
    "campaigns": Live("campaigns_live.html", _campaigns, frozenset({"campaign"}), ("after",)),
    "campaign": Live(
        "campaign_live.html",
        _campaign,
        frozenset({"campaign", "assignment", "telemetry", "device"}),
        ("name", "state", "stage", "drifted", "after"),
        frozenset({"campaign"}),
    ),
}


def find(region: str) -> Live:
    live = LIVE.get(region)
    if live is None:
        raise NotFound(f"there is no live region {region[:40]!r}")
    return live


def parameters_of(region: str, given: Mapping[str, str]) -> dict[str, str]:
    """Those of the region that are given and not empty, in a fixed order. Raises `Invalid` or `NotFound`."""
    found = {name: given[name] for name in find(region).parameters if given.get(name)}
    for name, value in found.items():
        if len(value) > _MAX_VALUE:
            raise Invalid(f"{name} has more than {_MAX_VALUE} characters", field=name)
    return found


def address(region: str, parameters: Parameters) -> str:
    """Where the region's stream is."""
    return f"/live/{region}" + (f"?{urlencode(parameters)}" if parameters else "")


def render(session: Session, region: str, parameters: Parameters, now_ms: int) -> str:
    """The region's HTML. Raises `NotFound` where what it shows is not there (any more)."""
    live = find(region)
    return html.render(live.template, now=now_ms, **live.context(session, parameters, now_ms))
