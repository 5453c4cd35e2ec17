"""What the engine holds to over random interleavings of devices, reports, losses, duplicates, clocks and people.

- never more than the pace's devices are in flight, and only inside windows;
- no device gets a second order of the campaign before the first has ended or timed out;
- only a running campaign, or one that is done and open, hands out its version, and only to devices of started stages;
- halted, paused, queued, aborted: nothing new goes out; carrying out a decision twice does nothing twice; so does saying a word twice;
- in the end every device runs the old build or the new one, and the one that the campaign says.
"""

from __future__ import annotations

import random

from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from covey_server.core.engine import Action, CampaignState, DeviceState, RefusedError, command, decide
from covey_server.core.spec import CampaignSpec, parse_spec
from covey_server.core.windows import open_zones
from tests.unit.server_campaigns.small_world import BAD, GOOD, NONE, Machine, World

STAGES = """
name: c
model: m
version: "2"
stages:
  - {name: canary, group: canary, soak: 10s}
  - {name: line, count: 5, soak: 1s}
  - {name: rest, percent: 100}
"""
PLAIN = STAGES + "on_breach: rollback\n"
PACED = (
    STAGES
    + """
pace: {in_flight: 2, per_minute: 60, growth: {per: 2, at_most: 600}, bandwidth: 1MB/s}
retry: {times: 2, after: 10s}
timeout: 60s
gates: {install_failures: {max_rate: 0.5}}
on_breach: {action: rollback, scope: stage}
"""
)
NIGHTLY = (
    STAGES
    + """
pace: {in_flight: 3}
maintenance: {windows: [{from: "22:00", to: "05:00"}, {from: "12:00", to: "13:00", days: [mon, wed]}]}
served: {requests: 5, of: all, within: 5m}
on_breach: halt
"""
)
LIVE = STAGES.replace("count: 5", "count: 5, approval: true") + (
    "target: {groups: [all], membership: live}\napproval: true\nconflict: queue\nretry: {then: person}\non_breach: pause\n"
)
SPECS = [parse_spec(text) for text in (PLAIN, PACED, NIGHTLY, LIVE)]
ZONES = ["UTC", "Europe/Berlin", "Asia/Tokyo"]
SIZES = (3, 4, 3)
# Most of what people say lets a campaign go on, or it would seldom get far.
WORDS = [action for action in Action if action not in {Action.ABORT, Action.ROLLBACK, Action.CLOSE}] * 2 + list(Action)
PEOPLE = st.sampled_from(["ann", "bob"])
INDEX = st.integers(0, sum(SIZES) - 1)


class Campaigning(RuleBasedStateMachine):
    @initialize(
        spec=st.sampled_from(SPECS),
        started=st.sampled_from([True, True, True, False]),
        zones=st.lists(st.sampled_from(ZONES), min_size=sum(SIZES), max_size=sum(SIZES)),
        busy=st.lists(st.booleans(), min_size=sum(SIZES), max_size=sum(SIZES)),
    )
    def begin(self, spec: CampaignSpec, started: bool, zones: list[str], busy: list[bool]) -> None:
        stages = [stage for stage, size in enumerate(SIZES) for _ in range(size)]
        self.world = World(spec, [Machine(*each) for each in zip(stages, zones, busy, strict=True)])
        if started:
            self.say(Action.START, "ann", None)
            if spec.approval:
                self.say(Action.APPROVE, "bob", None)

    # --- the server -----------------------------------------------------------------------------------------------

    @rule()
    def tick(self) -> None:
        before, progress = len(self.world.issued), self.world.progress
        self.world.tick()
        fresh = self.world.issued[before:]
        may = progress.state is CampaignState.RUNNING or (progress.state is CampaignState.DONE and progress.is_open)
        # A queued campaign starts its first stage at the next look.
        assert may or all(what == "old" for _, what in fresh), f"{progress.state} handed out the new version"
        if progress.state in {CampaignState.HALTED, CampaignState.ABORTED, CampaignState.ROLLED_BACK}:
            assert fresh == []
        self._check_windows([index for index, what in fresh if what == "new"])

    def _check_windows(self, reached: list[int]) -> None:
        maintenance = self.world.progress.spec.maintenance
        if maintenance is not None:
            zones = {self.world.machines[index].zone for index in reached}
            assert open_zones(maintenance, zones, self.world.now_ms).zones == zones

    @rule()
    def decide_twice(self) -> None:
        """The same decisions applied twice hand out nothing more than once."""
        world = self.world
        decisions = decide(world.progress, world.observe(), world.now_ms)
        assert decisions == decide(world.progress, world.observe(), world.now_ms)
        world.apply(decisions)
        issued, progress = list(world.issued), world.progress
        world.apply(decisions)
        assert (world.issued, world.progress) == (issued, progress)

    # --- time and the world ---------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 1, 5, 30, 120, 3600, 36_000]))
    def wait(self, seconds: int) -> None:
        self.world.now_ms += seconds * 1000

    @rule(seconds=st.sampled_from([-3600, -5, 86_400]))
    def clock_is_set(self, seconds: int) -> None:
        self.world.now_ms += seconds * 1000

    @rule(index=INDEX, fails=st.sampled_from([False, False, False, True]))
    def device_moves(self, index: int, fails: bool) -> None:
        self.world.move(index, fails)

    @rule(index=INDEX, acknowledged=st.sampled_from([True, True, False]))
    def report_arrives(self, index: int, acknowledged: bool) -> None:
        self.world.deliver(index, acknowledged)

    @rule(index=INDEX)
    def device_does_it_all(self, index: int) -> None:
        for _ in range(2):
            self.world.move(index, fails=False)
            self.world.deliver(index, acknowledged=True)
        self.world.answer(index)

    @rule(rounds=st.integers(1, 6), seconds=st.sampled_from([1, 15, 15, 1800]))
    def all_goes_well(self, rounds: int, seconds: int) -> None:
        for _ in range(rounds):
            self.tick()
            for index in range(len(self.world.machines)):
                self.device_does_it_all(index)
            self.world.now_ms += seconds * 1000
        self.tick()

    @rule(index=INDEX)
    def power(self, index: int) -> None:
        self.world.machines[index].present = not self.world.machines[index].present

    @precondition(lambda self: self.world.progress.spec.is_live and len(self.world.machines) < 12)
    @rule(zone=st.sampled_from(ZONES))
    def appears(self, zone: str) -> None:
        self.world.newcomers.append(Machine(-1, zone))

    @rule(verdict=st.sampled_from([GOOD] * 6 + [NONE, BAD]))
    def measure(self, verdict: object) -> None:
        self.world.verdict = verdict  # type: ignore[assignment]  # one of the three

    @rule(rivals=st.sampled_from([(), ("other",)]))
    def rivals_come_and_go(self, rivals: tuple[str, ...]) -> None:
        self.world.rivals = rivals

    # --- people ---------------------------------------------------------------------------------------------------

    @rule(action=st.sampled_from(WORDS), who=PEOPLE, stage=st.sampled_from([None, None, 0, 1, 2]))
    def person(self, action: Action, who: str, stage: int | None) -> None:
        self.say(action, who, stage)

    def say(self, action: Action, who: str, stage: int | None) -> None:
        world = self.world

        def said() -> None:
            breached = [world.tripped] if world.tripped and world.progress.state is CampaignState.PAUSED else []
            progress, now_ms = world.progress, world.now_ms
            world.apply(command(progress, action, who, breached, stage=stage, now_ms=now_ms, rivals=world.rivals))

        try:
            said()
        except RefusedError:
            return
        issued, progress = list(world.issued), world.progress
        parts = [(each.state, each.order) for each in world.machines]
        said()  # what has been done once is done, and not refused
        assert (world.issued, world.progress) == (issued, progress)
        assert [(each.state, each.order) for each in world.machines] == parts

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def no_more_are_in_flight_than_the_pace_allows(self) -> None:
        pace = self.world.progress.spec.pace
        if pace is not None and pace.in_flight is not None:
            assert sum(each.state is DeviceState.ASSIGNED for each in self.world.machines) <= pace.in_flight

    @invariant()
    def no_device_gets_more_orders_than_tries(self) -> None:
        for each in self.world.machines:
            assert each.runs in {"old", "new"}
            assert each.attempts == 0 or each.stage in self.world.started

    @invariant()
    def an_order_in_force_fits_the_campaign(self) -> None:
        progress = self.world.progress
        if progress.state is CampaignState.ROLLED_BACK:
            assert all(each.order is None or each.order.kind == "old" for each in self.world.machines)

    def teardown(self) -> None:
        """In the end everything comes back, nothing fails any more, and the campaign is told to end one way or the other."""
        world = getattr(self, "world", None)
        if world is None:
            return
        event(f"was {world.progress.state.value} in stage {world.progress.stage}")
        world.verdict, world.rivals = GOOD, ()
        for each in world.machines:
            each.present = True
        for _ in range(150):
            self._be_kind(world)
            world.now_ms += 1_800_000
            for index in range(len(world.machines)):
                self.device_does_it_all(index)
                while world.machines[index].outbox:
                    world.deliver(index, acknowledged=True)
            before = world.progress
            world.tick()
            over = world.progress.state not in ENDING and not world.progress.is_open
            if over and before == world.progress and not any(each.outbox for each in world.machines):
                break
        self._check_what_is_left(world)
        event(f"ended {world.progress.state.value} in stage {world.progress.stage}")

    def _be_kind(self, world: World) -> None:
        state = world.progress.state
        if state in {CampaignState.PAUSED, CampaignState.HALTED}:
            self.say(Action.ROLLBACK, "ann", None)
        if state is CampaignState.PLANNED:
            self.say(Action.START, "ann", None)
        if state in {CampaignState.QUEUED, CampaignState.RUNNING}:
            self.say(Action.APPROVE, "bob", None)

    def _check_what_is_left(self, world: World) -> None:
        state = world.progress.state
        assert state not in ENDING
        for each in world.machines:
            assert each.order is None or each.step == 2, "a device has an order that it never ended"
            assert each.order is None or each.order.number == each.counter
            if state is CampaignState.ROLLED_BACK:
                assert each.runs == "old"
            if state is CampaignState.DONE and each.state is DeviceState.ACTIVE:
                assert each.runs == "new"
            if state is CampaignState.DONE and world.progress.is_open:
                assert each.state not in {DeviceState.PLANNED, DeviceState.RETRYING, DeviceState.ASSIGNED}


ENDING = {CampaignState.PLANNED, CampaignState.QUEUED, CampaignState.RUNNING, CampaignState.ROLLING_BACK}

Campaigning.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestCampaigning = Campaigning.TestCase


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_long_lives(seed: int) -> None:
    """The same rules, drawn so that campaigns get far before something happens to them: what goes wrong is rare, as in life."""
    draw = random.Random(seed)
    devices = sum(SIZES)
    life = Campaigning()
    life.begin(draw.choice(SPECS), True, draw.choices(ZONES, k=devices), [draw.random() < 0.5 for _ in range(devices)])
    for what in draw.choices(list(RATES), list(RATES.values()), k=200):
        happens(what, life, draw)
        life.no_more_are_in_flight_than_the_pace_allows()
        life.no_device_gets_more_orders_than_tries()
        life.an_order_in_force_fits_the_campaign()
    life.teardown()


# What happens in a long life, and how often.
RATES = {
    "tick": 30,
    "decide_twice": 5,
    "wait": 20,
    "clock_is_set": 2,
    "device_moves": 20,
    "report_arrives": 20,
    "device_does_it_all": 30,
    "all_goes_well": 4,
    "power": 5,
    "appears": 2,
    "measure": 1,
    "rivals_come_and_go": 2,
    "person": 4,
}


def happens(what: str, life: Campaigning, draw: random.Random) -> None:
    index = draw.randrange(sum(SIZES))
    match what:
        case "tick":
            life.tick()
        case "decide_twice":
            life.decide_twice()
        case "wait":
            life.wait(draw.choice([1, 5, 30, 120, 3600]))
        case "clock_is_set":
            life.clock_is_set(draw.choice([-3600, -5, 86_400]))
        case "device_moves":
            life.device_moves(index, draw.random() < 0.1)
        case "report_arrives":
            life.report_arrives(index, draw.random() < 0.8)
        case "device_does_it_all":
            life.device_does_it_all(index)
        case "all_goes_well":
            life.all_goes_well(draw.randrange(1, 4), draw.choice([1, 15, 1800]))
        case "power":
            life.power(index)
        case "appears" if life.world.progress.spec.is_live:
            life.appears(draw.choice(ZONES))
        case "measure":
            life.measure(draw.choice([GOOD, GOOD, NONE, BAD]))
        case "rivals_come_and_go":
            life.rivals_come_and_go(draw.choice([(), ("other",)]))
        case "person":
            life.person(draw.choice(WORDS), draw.choice(["ann", "bob"]), draw.choice([None, None, 0, 1, 2]))
