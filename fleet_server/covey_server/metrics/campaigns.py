"""Campaigns: how many in which state, how often what happened, and how far those under way are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.core.engine import CampaignState
from covey_server.db.tables import Campaign, CampaignDevice, CampaignEvent

# Campaigns under way that are told apart by name.
MAX_NAMED = 50
UNDER_WAY = ("running", "paused", "halted", "rolling_back")


def collect(session: Session) -> Iterator[Metric]:
    family = GaugeMetricFamily("covey_campaigns", "Campaigns, by state.", labels=["state"])
    rows = session.execute(select(Campaign.state, func.count()).group_by(Campaign.state))
    found = {state: number for state, number in rows}  # noqa: C416 - a row is not the pair that dict() is typed for
    for state in CampaignState:
        family.add_metric([state.value], found.get(state.value, 0))
    yield family
    yield _devices(session)


def _devices(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "covey_campaign_devices",
        f"Devices of the campaigns under way (the {MAX_NAMED} newest), by campaign, model and the device's state in it.",
        labels=["campaign", "model", "state"],
    )
    newest = (
        select(Campaign.id)
        .where(Campaign.state.in_(UNDER_WAY))
        .order_by(Campaign.id.desc())
        .limit(MAX_NAMED)
        .scalar_subquery()
    )
    rows = session.execute(
        select(Campaign.name, Campaign.model, CampaignDevice.state, func.count())
        .join(Campaign, Campaign.id == CampaignDevice.campaign_id)
        .where(CampaignDevice.campaign_id.in_(newest))
        .group_by(Campaign.name, Campaign.model, CampaignDevice.state)
    )
    for campaign, model, state, number in rows:
        family.add_metric([campaign, model, state], number)
    return family


class EventCounts:
    """How often each kind of decision was made: read once, and from then on only what has come since."""

    def __init__(self) -> None:
        self._last = 0
        self._counts: Counter[str] = Counter()

    def collect(self, session: Session) -> Metric:
        """Of all campaigns, ever: `started` and `done` are how often something is deployed."""
        newest = session.scalar(select(func.max(CampaignEvent.id))) or 0
        if newest > self._last:
            rows = session.execute(
                select(CampaignEvent.kind, func.count())
                .where(CampaignEvent.id > self._last, CampaignEvent.id <= newest)
                .group_by(CampaignEvent.kind)
            )
            for kind, number in rows:
                self._counts[kind] += number
            self._last = newest
        family = CounterMetricFamily(
            "covey_campaign_events", "Lines in the logs of all campaigns, by kind.", labels=["kind"]
        )
        for kind, number in sorted(self._counts.items()):
            family.add_metric([kind], number)
        return family
