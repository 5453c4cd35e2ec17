"""The thread that moves campaigns on: once a second, and when woken, it looks at every campaign that has something to decide.

Each campaign has transactions of its own, and its failure is logged and stops no other. Nothing is remembered between two
looks but in the database, so a server that restarts goes on where it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.orm import Session

from covey_server.bus import Bus
from covey_server.campaigns.apply import Applier
from covey_server.campaigns.evidence import stage_evidence
from covey_server.campaigns.repository import count, follow, open_campaigns, progress_of, settled_ms
from covey_server.clock import Clock
from covey_server.core.engine import CampaignState, Observed, Progress, decide
from covey_server.core.gates import StageEvidence, Verdict, judge, judge_installs
from covey_server.db.engine import Database
from covey_server.db.tables import Campaign

_log = logging.getLogger(__name__)

_JUDGED = frozenset({CampaignState.RUNNING, CampaignState.PAUSED})
_DECIDES = _JUDGED | {CampaignState.ROLLING_BACK}


class CampaignService:
    """`wake_fleet` is called when new assignments have been committed, so that they are sent at once."""

    def __init__(
        self, database: Database, clock: Clock, bus: Bus, wake_fleet: Callable[[], None], tick_s: float = 1.0
    ) -> None:
        self._database, self._clock, self._bus, self._wake_fleet = database, clock, bus, wake_fleet
        self._tick_s = tick_s
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="campaigns", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once the look in progress has ended."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Look now: somebody told a campaign something."""
        self._woken.set()

    def tick(self) -> None:
        """One look at every campaign that has something to decide or devices that catch up."""
        with self._database.reading() as session:
            ids = open_campaigns(session)
        for campaign_id in ids:
            try:
                self._look(campaign_id)
            except Exception:  # noqa: BLE001 - one campaign's failure must not stop the others; it is logged with its trace
                _log.exception("campaign %d could not be looked at", campaign_id)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self.tick()
            except Exception:  # noqa: BLE001 - a database that is away for a moment must not end the thread
                _log.exception("campaigns could not be looked at")
            self._woken.wait(self._tick_s)

    def _look(self, campaign_id: int) -> None:
        with self._database.session() as session:
            campaign = _locked(session, campaign_id)
            moved = follow(session, campaign)
            name, state = campaign.name, CampaignState(campaign.state)
        changed = moved > 0
        if state in _DECIDES:
            with self._database.reading() as session:
                judged = self._judge(session, campaign_id)
            with self._database.session() as session:
                decided, ordered = self._decide(session, campaign_id, *judged)
            changed = changed or decided
            if ordered:
                self._wake_fleet()
        if changed:
            self._bus.publish("campaign", name)

    def _judge(self, session: Session, campaign_id: int) -> tuple[Progress, tuple[Verdict, ...]]:
        """The verdicts on the present stage; reading them is the costly part, so it holds up no writer."""
        campaign = session.get_one(Campaign, campaign_id)
        progress = progress_of(session, campaign)
        if progress.state not in _JUDGED or not progress.stage_started:
            return progress, ()
        counts = count(session, campaign, len(progress.spec.stages), self._clock()).stages[progress.stage]
        return progress, judge(progress.spec.gates, stage_evidence(session, campaign, progress.spec, counts))

    def _decide(
        self, session: Session, campaign_id: int, seen: Progress, verdicts: tuple[Verdict, ...]
    ) -> tuple[bool, bool]:
        """Decide and carry it out; whether anything changed, and whether there are orders to be sent."""
        now_ms = self._clock()
        campaign = _locked(session, campaign_id)
        progress = progress_of(session, campaign)
        if progress != seen:
            return False, False  # somebody told it something meanwhile; the next look sees it whole
        before = _shown(campaign)
        counts = count(session, campaign, len(progress.spec.stages), now_ms)
        if verdicts:
            here = counts.stages[progress.stage]
            installs = judge_installs(progress.spec.gates.install_failures, StageEvidence(here.total, here.failed))
            verdicts = (installs, *verdicts[1:])
            campaign.verdict = {
                "stage": progress.spec.stages[progress.stage].name,
                "gates": [verdict.to_json() for verdict in verdicts],
                "tripped": (campaign.verdict or {}).get("tripped"),
            }
        observed = Observed(counts.stages, verdicts, settled_ms(session, campaign), counts.restore)
        applier = Applier(session, campaign, now_ms)
        applier.apply(decide(progress, observed, now_ms), verdicts)
        return _shown(campaign) != before, applier.ordered


def _locked(session: Session, campaign_id: int) -> Campaign:
    return session.get_one(Campaign, campaign_id, with_for_update=True)


def _shown(campaign: Campaign) -> tuple[object, ...]:
    return (campaign.state, campaign.stage, campaign.stage_started_ms, campaign.waiting_for, campaign.verdict)
