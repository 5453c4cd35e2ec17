"""The thread that moves campaigns on: once a second, and when woken, it looks at every campaign that has something to decide.

Each campaign has transactions of its own, and its failure is logged and stops no other. Nothing is remembered between two
looks but in the database, so a server that restarts goes on where it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from covey_server.bus import Bus
from covey_server.campaigns.apply import Applier
from covey_server.campaigns.evidence import EvidenceReader
from covey_server.campaigns.following import Followed, follow
from covey_server.campaigns.repository import (
    Counts,
    count,
    deciding_campaigns,
    largest_build,
    names_of,
    newest_event,
    progress_of,
    rivals_of,
)
from covey_server.clock import Clock
from covey_server.core.engine import CampaignState, Observed, Progress, decide, upkeep
from covey_server.core.gates import Verdict, judge, judge_installs_of, with_trace
from covey_server.db.engine import Database
from covey_server.db.tables import Campaign
from covey_server.fleet.precedence import Precedence

_log = logging.getLogger(__name__)

# So many looks give orders to go back before what has moved is followed up again.
_GOING_BACK = 6
_JUDGED = frozenset({CampaignState.RUNNING, CampaignState.PAUSED})


@dataclass(frozen=True)
class _Seen:
    """What a look rests on. This thread alone moves devices, but for what is told in the campaign's log after `last_event`."""

    progress: Progress
    counts: Counts
    verdicts: tuple[Verdict, ...]
    last_event: int


@dataclass(frozen=True)
class _Looked:
    name: str
    changed: bool  # something that people see
    ordered: bool  # there are new orders to be sent
    more: bool  # the work was cut short
    going_back: bool = False  # and what is left are orders to go back


class CampaignService:
    """`wake_fleet` is called when new assignments have been committed, so that they are sent at once."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        bus: Bus,
        wake_fleet: Callable[[], None],
        tick_s: float = 1.0,
        precedence: Precedence | None = None,
    ) -> None:
        """`precedence`: claimed while orders to go back are being given."""
        self._database, self._clock, self._bus, self._wake_fleet = database, clock, bus, wake_fleet
        self._tick_s = tick_s
        self._precedence = precedence or Precedence()
        self._skipped = 0  # looks in a row that have given orders to go back
        self._evidence = EvidenceReader()
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
        self._precedence.claim("campaigns", False)

    def wake(self) -> None:
        """Look now: somebody told a campaign something."""
        self._woken.set()

    def tick(self) -> bool:
        """Follow up what has moved, then look at every campaign that has something to decide. Its work is bounded; whether there
        is more to be done at once."""
        followed = self._follow()
        more, going_back = followed.more, False
        with self._database.reading() as session:
            ids = deciding_campaigns(session)
            moved = names_of(session, followed.campaigns - set(ids))
        for name in moved:
            self._bus.publish("campaign", name)
        for campaign_id in ids:
            try:
                looked = self._look(campaign_id, campaign_id in followed.campaigns)
                more = looked.more or more
                going_back = going_back or looked.going_back
            except Exception:  # noqa: BLE001 - one campaign's failure must not stop the others; it is logged with its trace
                _log.exception("campaign %d could not be looked at", campaign_id)
        self._skipped = self._skipped + 1 if going_back else 0
        self._precedence.claim("campaigns", going_back)
        return more

    def _follow(self) -> Followed:
        """What has moved; but for some looks orders to go back go first. Those of a rollout do not: what has moved may stop it."""
        if self._skipped % _GOING_BACK:
            return Followed(frozenset(), more=True)
        with self._database.session() as session:
            return follow(session)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            more = False
            try:
                more = self.tick()
            except Exception:  # noqa: BLE001 - a database that is away for a moment must not end the thread
                _log.exception("campaigns could not be looked at")
                self._precedence.claim("campaigns", False)
            if not more:
                self._woken.wait(self._tick_s)

    def _look(self, campaign_id: int, moved: bool) -> _Looked:
        with self._database.reading() as session:
            seen = self._see(session, campaign_id)
        with self._database.session() as session:
            looked = self._decide(session, campaign_id, seen)
        if looked.ordered:
            self._wake_fleet()
        if moved or looked.changed:
            self._bus.publish("campaign", looked.name)
        return looked

    def _see(self, session: Session, campaign_id: int) -> _Seen:
        """Counts, and the verdicts on the present stage; reading them is the costly part, so it holds up no writer."""
        campaign = session.get_one(Campaign, campaign_id)
        progress = progress_of(session, campaign)
        now_ms = self._clock()
        counts = count(session, campaign, progress.spec, now_ms)
        last_event = newest_event(session, campaign)
        if progress.state not in _JUDGED or not progress.stage_started:
            return _Seen(progress, counts, (), last_event)
        gates, here = progress.spec.gates_of(progress.stage), counts.stages[progress.stage]
        evidence = self._evidence.look(session, campaign, gates, progress.spec.settle.ms, here, now_ms)
        shown = campaign.verdict or {}
        earlier = shown.get("gates", []) if shown.get("stage") == progress.spec.stages[progress.stage].name else []
        return _Seen(progress, counts, with_trace(judge(gates, evidence), earlier, now_ms), last_event)

    def _decide(self, session: Session, campaign_id: int, seen: _Seen) -> _Looked:
        """Decide and carry it out."""
        now_ms = self._clock()
        campaign = _locked(session, campaign_id)
        progress = progress_of(session, campaign)
        if progress != seen.progress:
            # Somebody told it something meanwhile; the next look sees it whole.
            return _Looked(campaign.name, changed=False, ordered=False, more=True)
        before = _shown(campaign)
        applier = Applier(session, campaign, now_ms)
        applier.apply(upkeep(progress, now_ms))
        counts, verdicts = seen.counts, seen.verdicts
        if newest_event(session, campaign) != seen.last_event:
            # Devices have been timed out, or somebody had some tried again.
            counts = count(session, campaign, progress.spec, now_ms)
        if verdicts:
            gates = progress.spec.gates_of(progress.stage)
            verdicts = (judge_installs_of(gates, counts.stages[progress.stage].evidence()), *verdicts[1:])
            campaign.verdict = {
                "stage": progress.spec.stages[progress.stage].name,
                "gates": [verdict.to_json() for verdict in verdicts],
                "tripped": (campaign.verdict or {}).get("tripped"),
            }
        observed = Observed(
            counts.stages,
            verdicts,
            counts.settled_ms[progress.stage],
            counts.restore,
            rivals_of(session, campaign) if progress.state is CampaignState.QUEUED else (),
            largest_build(session, campaign) if progress.spec.is_paced else 0,
        )
        applier.apply(decide(progress, observed, now_ms), verdicts)
        going_back = applier.ordered and applier.more and campaign.state == CampaignState.ROLLING_BACK.value
        return _Looked(campaign.name, _shown(campaign) != before, applier.ordered, applier.more, going_back)


def _locked(session: Session, campaign_id: int) -> Campaign:
    return session.get_one(Campaign, campaign_id, with_for_update=True)


def _shown(campaign: Campaign) -> tuple[object, ...]:
    return (campaign.state, campaign.stage, campaign.stage_started_ms, campaign.waiting_for, campaign.verdict)
