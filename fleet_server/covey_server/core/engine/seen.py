"""What the engine is shown: a campaign as it was last written, and what the database counts of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from covey_server.core.engine.states import CampaignState
from covey_server.core.gates import StageEvidence, Verdict
from covey_server.core.pace import Meter
from covey_server.core.spec import CampaignSpec


@dataclass(frozen=True)
class Progress:
    """The campaign itself. `stage` is the present one; where it has not started, all before it have passed."""

    spec: CampaignSpec
    state: CampaignState
    stage: int = 0
    stage_started: bool = False
    soak_skipped: bool = False  # of this stage, by a person
    accepted: frozenset[tuple[int, str]] = frozenset()  # stages and their gates whose breach a person accepted
    author: str = ""
    approved: bool = False  # as a whole
    approved_stages: frozenset[int] = frozenset()
    is_open: bool = False  # done, and devices that come later are served
    going_back: tuple[int, ...] | None = None  # the stages that go back, or went; None: all
    meter: Meter = Meter()
    admitted_ms: int | None = None  # when a live campaign last looked for devices that have come to match


@dataclass(frozen=True)
class StageCounts:
    """The devices of one stage. `present` ones are connected, or were a moment ago.

    Not reached: `planned` and `away`. In progress: `silent` and `busy`. Unknown: `unknown`. Waiting: `waiting`, `retrying`.
    """

    planned: int = 0  # have no order yet
    silent: int = 0  # present, have an order, have not said a word of it
    busy: int = 0  # present, at work on their order
    waiting: int = 0  # present, hold the build, and a condition on the device does not hold yet
    away: int = 0  # have an order, have not said a word of it, and are off
    unknown: int = 0  # fell silent while at work on their order
    active: int = 0
    already: int = 0  # those of them that ran the version before the campaign came
    unserved: int = 0  # those of them that have yet to answer requests
    mute: int = 0  # those of them that should have by now
    failed: int = 0
    retrying: int = 0  # failed, and get another order
    # Of `planned` and `retrying`: present, and it is time for them. By the time zone they are in.
    ready: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.planned + self.in_flight + self.active + self.failed + self.retrying

    @property
    def in_flight(self) -> int:
        """With an order that has not ended."""
        return self.silent + self.busy + self.waiting + self.away + self.unknown

    @property
    def served(self) -> int:
        """Done: they run the version and have answered requests with it."""
        return self.active - self.unserved - self.mute

    def evidence(self) -> StageEvidence:
        """What gates may know of the stage without any measurement."""
        return StageEvidence(self.total, self.failed, self.active, self.already, ordered=self.total - self.planned)


@dataclass(frozen=True)
class RestoreCounts:
    """The devices of those stages of a campaign that go back."""

    to_order: int = 0  # have the campaign's order and none to go back yet
    restoring: int = 0  # present, or not away for long
    away: int = 0
    restored: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Observed:
    """What the database shows: counts per stage, the verdicts on the present stage, when its last device became active.

    `rivals`: campaigns that have to end before a queued one may start. `build_bytes`: the size of the version's largest build
    that a device of the campaign gets.
    """

    stages: tuple[StageCounts, ...]
    verdicts: tuple[Verdict, ...] = ()
    settled_ms: int | None = None
    restore: RestoreCounts = RestoreCounts()
    rivals: tuple[str, ...] = ()
    build_bytes: int = 0
