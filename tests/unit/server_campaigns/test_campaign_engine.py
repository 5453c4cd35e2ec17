"""The campaign engine: single decisions, and invariants over random interleavings of devices, people and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from covey_server.core.engine import (
    ACTIVE,
    Action,
    Assign,
    Breach,
    CampaignState,
    Decision,
    DeviceState,
    Observed,
    PassStage,
    Progress,
    RefusedError,
    Restore,
    RestoreCounts,
    SetState,
    SkipSoak,
    StageCounts,
    StartStage,
    Wait,
    command,
    decide,
)
from covey_server.core.gates import Verdict
from covey_server.core.spec import CampaignSpec, parse_spec

FILE = """
name: c
model: m
version: "2"
stages:
  - {name: canary, group: canary, soak: 10s}
  - {name: rest, percent: 100}
min_reached: 0.5
on_breach: rollback
"""
SPEC = parse_spec(FILE)
GOOD = Verdict("latency", "passing", "fine", {})
BAD = Verdict("latency", "breached", "p99 4 -> 40 ms", {"ratio": 10.0})
NONE = Verdict("latency", "no_evidence", "64 of 100 requests", {})
RUNNING = Progress(SPEC, CampaignState.RUNNING, stage=0, stage_started=True)


def observed(canary: StageCounts, rest: StageCounts | None = None, *verdicts: Verdict, settled: int = 0) -> Observed:
    return Observed((canary, rest or StageCounts(planned=4)), verdicts, settled)


def waits(decisions: list[Decision]) -> str:
    assert isinstance(decisions[-1], Wait)
    return decisions[-1].why


def test_a_started_campaign_starts_its_first_stage() -> None:
    fresh = replace(RUNNING, stage_started=False)
    assert decide(fresh, observed(StageCounts(planned=1)), 0)[:2] == [StartStage(0), Assign(0)]


def test_it_says_why_it_waits() -> None:
    seen = observed(StageCounts(active=1), None, NONE, settled=1000)
    assert decide(RUNNING, seen, 4000) == [Wait("canary: 1 of 1 active; latency has 64 of 100 requests; soak 7 s left")]
    seen = observed(StageCounts(active=1, busy=1, silent=1, away=3), None, GOOD, settled=0)
    assert (
        waits(decide(RUNNING, seen, 60_000)) == "canary: 1 of 6 active; 2 in progress; 1 of at least 3 reached (3 off)"
    )


def test_a_stage_passes_into_the_next_once_all_holds() -> None:
    decisions = decide(RUNNING, observed(StageCounts(active=1), None, GOOD), 10_000)
    assert decisions[:3] == [PassStage(0, "stage canary passed: 1 of 1 active"), StartStage(1), Assign(1)]


def test_devices_that_are_off_do_not_block_and_the_end_says_so() -> None:
    last = replace(RUNNING, stage=1)
    seen = observed(StageCounts(active=1), StageCounts(active=3, away=2), GOOD)
    decisions = decide(last, seen, 0)
    assert SetState(CampaignState.DONE, "done", "done: 4 of 6 devices active, 2 to catch up") in decisions


def test_an_empty_stage_passes_without_evidence() -> None:
    assert decide(RUNNING, observed(StageCounts(), None, NONE), 0)[0] == PassStage(0, "stage canary is empty")


@pytest.mark.parametrize(
    ("on_breach", "state"),
    [("pause", CampaignState.PAUSED), ("halt", CampaignState.HALTED), ("rollback", CampaignState.ROLLING_BACK)],
)
def test_a_breach_leads_to_what_the_file_says(on_breach: str, state: CampaignState) -> None:
    spec = parse_spec(FILE.replace("rollback", on_breach))
    decisions = decide(replace(RUNNING, spec=spec), observed(StageCounts(active=1), None, BAD), 0)
    assert decisions[0] == Breach(0, BAD)
    assert isinstance(decisions[1], SetState)
    assert decisions[1].state is state
    assert (Restore() in decisions) == (state is CampaignState.ROLLING_BACK)
    assert "p99 4 -> 40 ms" in waits(decisions)


def test_late_install_failures_of_a_passed_stage_count() -> None:
    decisions = decide(replace(RUNNING, stage=1), observed(StageCounts(failed=1), StageCounts(active=4), GOOD), 0)
    assert isinstance(decisions[0], Breach)
    assert (decisions[0].stage, decisions[0].verdict.gate) == (0, "install_failures")


def test_an_accepted_breach_does_not_trip_again() -> None:
    accepted = replace(RUNNING, accepted=frozenset({(0, "latency")}))
    assert isinstance(decide(accepted, observed(StageCounts(active=1), None, BAD), 10_000)[0], PassStage)


def test_an_accepted_failure_of_an_earlier_stage_does_not_trip_in_each_later_one() -> None:
    late = replace(RUNNING, stage=1, accepted=frozenset({(0, "install_failures")}))
    decisions = decide(late, observed(StageCounts(failed=1), StageCounts(busy=4), GOOD), 0)
    assert waits(decisions).startswith("rest: 0 of 4 active; 4 in progress")


def test_a_paused_campaign_still_protects_its_devices() -> None:
    paused = replace(RUNNING, state=CampaignState.PAUSED)
    assert decide(paused, observed(StageCounts(planned=1), None, GOOD), 0) == []
    assert Restore() in decide(paused, observed(StageCounts(active=1), None, BAD), 0)


@pytest.mark.parametrize(
    ("restore", "state", "words"),
    [
        (RestoreCounts(restored=2), CampaignState.ROLLED_BACK, "2 of 2 devices restored"),
        (
            RestoreCounts(restored=1, away=1),
            CampaignState.ROLLED_BACK,
            "1 of 2 devices restored, 1 off; their order waits for them",
        ),
        (RestoreCounts(restored=1, failed=1), CampaignState.FAILED, "1 of 2 devices restored, 1 could not go back"),
    ],
)
def test_going_back_ends_once_nobody_is_waited_for(restore: RestoreCounts, state: CampaignState, words: str) -> None:
    back = replace(RUNNING, state=CampaignState.ROLLING_BACK)
    assert decide(back, Observed((), restore=restore), 0)[0] == SetState(state, state.value, words)
    waiting = decide(back, Observed((), restore=replace(restore, restoring=1)), 0)
    assert len(waiting) == 1


TABLE = {
    Action.START: ("planned", "running"),
    Action.PAUSE: ("running", "paused"),
    Action.RESUME: ("paused", "running"),
    Action.ABORT: ("planned running paused halted", "aborted"),
    Action.ROLLBACK: ("running paused halted aborted done failed", "rolling_back rolled_back"),
    Action.SKIP_SOAK: ("running paused", ""),
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("state", CampaignState)
def test_every_word_in_every_state(action: Action, state: CampaignState) -> None:
    takes, already = (words.split() for words in TABLE[action])
    campaign = replace(RUNNING, state=state)
    if state.value in already:
        assert command(campaign, action, "ann") == []
    elif state.value in takes:
        assert command(campaign, action, "ann")
    else:
        with pytest.raises(RefusedError, match=f"{state.value.replace('_', ' ')} cannot"):
            command(campaign, action, "ann")


def test_skipping_a_soak_twice_is_skipping_it_once() -> None:
    assert command(RUNNING, Action.SKIP_SOAK, "ann") == [SkipSoak(0)]
    skipped = replace(RUNNING, soak_skipped=True)
    assert command(skipped, Action.SKIP_SOAK, "ann") == []
    assert isinstance(decide(skipped, observed(StageCounts(active=1), None, GOOD), 0)[0], PassStage)


# --- a small world ------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A device: what it runs, the newest order it holds (of the campaign, "new"; to go back, "old"), how far it is with it."""

    stage: int
    runs: str = "old"
    order: str | None = None
    heard: bool = False
    finished: bool = False
    failed: bool = False
    present: bool = True
    state: DeviceState = DeviceState.PLANNED


class World:
    """Applies decisions to devices as the server does to its rows, and shows the engine what the server would."""

    def __init__(self, spec: CampaignSpec, sizes: list[int]) -> None:
        self.progress = Progress(spec, CampaignState.PLANNED)
        self.machines = [Machine(stage) for stage, size in enumerate(sizes) for _ in range(size)]
        self.now_ms = 0
        self.settled_ms: int | None = None
        self.verdict = GOOD
        self.started: set[int] = set()
        self.issued: list[tuple[int, str]] = []

    def observe(self) -> Observed:
        stages = []
        for index in range(len(self.progress.spec.stages)):
            here = [each for each in self.machines if each.stage == index]
            assigned = [each for each in here if each.state is DeviceState.ASSIGNED]
            stages.append(
                StageCounts(
                    planned=sum(each.state is DeviceState.PLANNED for each in here),
                    silent=sum(each.present and not each.heard for each in assigned),
                    busy=sum(each.present and each.heard for each in assigned),
                    away=sum(not each.present for each in assigned),
                    active=sum(each.state is DeviceState.ACTIVE for each in here),
                    failed=sum(each.state is DeviceState.FAILED and each.order == "new" for each in here),
                )
            )
        back = [each for each in self.machines if each.state is DeviceState.ROLLING_BACK]
        has_order = (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED)
        restored = (DeviceState.ROLLED_BACK, DeviceState.RESTORED_LOCALLY)
        restore = RestoreCounts(
            to_order=sum(each.state in has_order and each.order == "new" for each in self.machines),
            restoring=sum(each.present for each in back),
            away=sum(not each.present for each in back),
            restored=sum(each.state in restored for each in self.machines),
            failed=sum(each.state is DeviceState.FAILED and each.order == "old" for each in self.machines),
        )
        return Observed(tuple(stages), (self.verdict,), self.settled_ms, restore)

    def apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case SetState(state):
                    self._check_end(state)
                    self.progress = replace(self.progress, state=state)
                case StartStage(stage):
                    self.started.add(stage)
                    self.progress = Progress(self.progress.spec, self.progress.state, stage, stage_started=True)
                case Assign(stage):
                    for index, each in enumerate(self.machines):
                        if each.stage == stage and each.state is DeviceState.PLANNED:
                            self._order(index, "new", DeviceState.ASSIGNED)
                case Restore():
                    self._restore()
                case SkipSoak():
                    self.progress = replace(self.progress, soak_skipped=True)
                case _:
                    pass

    def _check_end(self, state: CampaignState) -> None:
        """A campaign does not end while a device that is there is still at it."""
        there = [each for each in self.machines if each.present]
        if state in {CampaignState.ROLLED_BACK, CampaignState.FAILED}:
            assert all(each.state is not DeviceState.ROLLING_BACK for each in there)
            assert all(each.order != "new" for each in self.machines)
        if state is CampaignState.DONE:
            assert all(each.state not in {DeviceState.PLANNED, DeviceState.ASSIGNED} for each in there)
            assert self.verdict is not NONE

    def _restore(self) -> None:
        for index, each in enumerate(self.machines):
            if each.state is DeviceState.FAILED and each.runs == "old":
                self._order(index, "old", DeviceState.RESTORED_LOCALLY)
            elif each.state is DeviceState.ASSIGNED and not each.heard and not each.present:
                self._order(index, "old", DeviceState.SKIPPED)
            elif each.state in {DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED}:
                self._order(index, "old", DeviceState.ROLLING_BACK)

    def _order(self, index: int, what: str, state: DeviceState) -> None:
        assert what == "old" or self.progress.state is CampaignState.RUNNING, "handed out while it should not"
        each = self.machines[index]
        each.order, each.heard, each.finished, each.failed, each.state = what, False, False, False, state
        self.issued.append((index, what))

    def device_moves(self, index: int, fails: bool) -> None:
        """A present device hears of its newest order, then follows it; or fails and keeps what it runs."""
        each = self.machines[index]
        if not each.present or each.order is None or each.finished:
            return
        if not each.heard:
            each.heard = True
            return
        each.finished, each.failed = True, fails
        if not fails:
            each.runs = each.order
        if each.state is DeviceState.ASSIGNED:
            each.state = DeviceState.FAILED if fails else DeviceState.ACTIVE
            self.settled_ms = self.now_ms
        elif each.state is DeviceState.ROLLING_BACK:
            each.state = DeviceState.ROLLED_BACK if each.runs == "old" else DeviceState.FAILED

    def tick(self) -> None:
        self.apply(decide(self.progress, self.observe(), self.now_ms))


SIZES = [2, 3, 3]
THREE = FILE.replace("soak: 10s}", "soak: 10s}\n  - {name: line, count: 5, soak: 1s}")


class Campaigning(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(parse_spec(THREE), SIZES)

    @initialize(started=st.sampled_from([True, True, True, False]))
    def begin(self, started: bool) -> None:
        if started:
            self.person(Action.START)

    @rule()
    def tick(self) -> None:
        before, state = list(self.world.issued), self.world.progress.state
        self.world.tick()
        fresh = self.world.issued[len(before) :]
        if state is not CampaignState.RUNNING:
            assert all(what == "old" for _, what in fresh), f"{state} handed out the new version"
        if state not in ACTIVE:
            assert fresh == []

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        self.world.now_ms += seconds * 1000

    @rule(index=st.integers(0, sum(SIZES) - 1), fails=st.sampled_from([False, False, False, True]))
    def device_moves(self, index: int, fails: bool) -> None:
        self.world.device_moves(index, fails)

    @rule(index=st.integers(0, sum(SIZES) - 1))
    def power(self, index: int) -> None:
        self.world.machines[index].present = not self.world.machines[index].present

    @rule(action=st.sampled_from(Action))
    def say(self, action: Action) -> None:
        self.person(action)

    def person(self, action: Action) -> None:
        try:
            self.world.apply(command(self.world.progress, action, "ann"))
        except RefusedError:
            return
        assert self.world.progress.state is not CampaignState.PLANNED

    @rule(verdict=st.sampled_from([GOOD, GOOD, NONE, BAD]))
    def measure(self, verdict: Verdict) -> None:
        self.world.verdict = verdict

    @precondition(lambda self: self.world.progress.state in ACTIVE)
    @rule()
    def decide_twice(self) -> None:
        """The same decisions applied twice hand out nothing more than once."""
        decisions = decide(self.world.progress, self.world.observe(), self.world.now_ms)
        assert decisions == decide(self.world.progress, self.world.observe(), self.world.now_ms)
        self.world.apply(decisions)
        issued, progress = list(self.world.issued), self.world.progress
        self.world.apply(decisions)
        assert (self.world.issued, self.world.progress) == (issued, progress)

    @invariant()
    def only_started_stages_are_touched(self) -> None:
        for index, _ in self.world.issued:
            assert self.world.machines[index].stage in self.world.started

    @invariant()
    def nobody_gets_the_version_twice(self) -> None:
        new = [index for index, what in self.world.issued if what == "new"]
        assert len(new) == len(set(new))

    @invariant()
    def an_order_in_force_fits_the_campaign(self) -> None:
        if self.world.progress.state in {CampaignState.ROLLING_BACK, CampaignState.ROLLED_BACK}:
            holding = [each for each in self.world.machines if each.order == "new"]
            assert self.world.progress.state is CampaignState.ROLLING_BACK or not holding

    def teardown(self) -> None:
        """In the end everything comes back, nothing fails any more, and the campaign is told to end one way or the other."""
        world = self.world
        if world.progress.state in {CampaignState.PAUSED, CampaignState.HALTED}:
            world.apply(command(world.progress, Action.ROLLBACK, "ann"))
        world.verdict = GOOD
        for each in world.machines:
            each.present = True
        for _ in range(40):
            world.now_ms += 60_000
            for index in range(len(world.machines)):
                world.device_moves(index, fails=False)
            world.tick()
        state = world.progress.state
        assert state not in {CampaignState.RUNNING, CampaignState.ROLLING_BACK}
        for each in world.machines:
            assert each.order is None or each.finished, "a device has an order that it never ended"
            if state is CampaignState.ROLLED_BACK:
                assert each.runs == "old"
            if state is CampaignState.DONE and not each.failed:
                assert each.runs == "new"


Campaigning.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestCampaigning = Campaigning.TestCase
