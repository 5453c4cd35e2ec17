"""A campaign's devices and the server's rows about them, small and in memory, for the engine's property tests.

Decisions are applied as the server applies them to its rows: to sets, and only where they still hold. Devices get their orders and
say what became of them through a post that may be slow, may deliver twice, and delivers nothing to a device that is off.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from covey_server.core.engine import (
    ACTIVE,
    AcceptBreach,
    Admit,
    Approve,
    Assign,
    CampaignState,
    Close,
    Decision,
    DeviceState,
    Observed,
    PassStage,
    Progress,
    Restore,
    RestoreCounts,
    Retry,
    SetState,
    SkipSoak,
    StageCounts,
    StartStage,
    TimeOut,
    decide,
    upkeep,
)
from covey_server.core.gates import Verdict
from covey_server.core.pace import spend
from covey_server.core.spec import CampaignSpec

GOOD = Verdict("latency", "passing", "fine", {})
BAD = Verdict("latency", "breached", "p99 4 -> 40 ms", {"ratio": 10.0})
NONE = Verdict("latency", "no_evidence", "64 of 100 requests", {})
HAS_ORDER = (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED, DeviceState.RETRYING)
BUILD_BYTES = 1_000_000


@dataclass
class Order:
    """`state`, as the server knows it: issued, busy, active or bad."""

    number: int
    kind: str  # new: the campaign's build; old: the one before
    state: str = "issued"


@dataclass
class Machine:
    """A device, and the server's row about it."""

    stage: int
    zone: str = "UTC"
    busy: bool = False  # its application sends requests
    # The device.
    runs: str = "old"
    holds: Order | None = None  # the newest order that it took
    step: int = 0  # with it: 0 took, 1 at work, 2 ended
    counter: int = 0
    present: bool = True
    outbox: list[tuple[int, str]] = field(default_factory=list)  # reports that are not acknowledged
    # The server's row.
    state: DeviceState = DeviceState.PLANNED
    order: Order | None = None
    attempts: int = 0
    begun_ms: int | None = None
    due_ms: int | None = None
    active_ms: int | None = None
    served: bool = False


class World:
    def __init__(self, spec: CampaignSpec, machines: list[Machine]) -> None:
        self.progress = Progress(spec, CampaignState.PLANNED, author="ann")
        self.machines = machines
        self.newcomers: list[Machine] = []
        self.now_ms = 1_796_100_000_000
        self.verdict = GOOD
        self.rivals: tuple[str, ...] = ()
        self.tripped: tuple[int, str] | None = None
        self.started: set[int] = set()
        self.issued: list[tuple[int, str]] = []
        self.orders = 0

    # --- what the server does -------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.apply(upkeep(self.progress, self.now_ms))
        self.apply(decide(self.progress, self.observe(), self.now_ms))

    def observe(self) -> Observed:
        stages = tuple(self._count(index) for index in range(len(self.progress.spec.stages)))
        verdicts = (self.verdict,) if self.progress.stage_started else ()
        active = [each.active_ms for each in self.machines if each.stage == self.progress.stage and each.active_ms]
        settled = max(active, default=None)
        return Observed(stages, verdicts, settled, self._count_restore(), self.rivals, BUILD_BYTES)

    def _count(self, stage: int) -> StageCounts:
        here = [each for each in self.machines if each.stage == stage]
        flying = [each for each in here if each.state is DeviceState.ASSIGNED]
        there = [each for each in flying if each.present]
        active = [each for each in here if each.state is DeviceState.ACTIVE]
        served = self.progress.spec.served
        late = [each for each in active if not each.served and self._expected(each)]
        mute = [each for each in late if self.now_ms - (each.active_ms or 0) >= served.within.ms]
        ready: dict[str, int] = {}
        for each in here:
            if each.present and self._may_have(each):
                ready[each.zone] = ready.get(each.zone, 0) + 1
        return StageCounts(
            planned=sum(each.state is DeviceState.PLANNED for each in here),
            silent=sum(not heard(each) for each in there),
            busy=sum(heard(each) for each in there),
            away=sum(not each.present and not heard(each) for each in flying),
            unknown=sum(not each.present and heard(each) for each in flying),
            active=len(active),
            unserved=len(late) - len(mute),
            mute=len(mute),
            failed=sum(each.state is DeviceState.FAILED and kind(each) == "new" for each in here),
            retrying=sum(each.state is DeviceState.RETRYING for each in here),
            ready=ready,
        )

    def _expected(self, machine: Machine) -> bool:
        return machine.busy or self.progress.spec.served.of == "all"

    def _may_have(self, machine: Machine) -> bool:
        due = machine.state is DeviceState.RETRYING and (machine.due_ms or 0) <= self.now_ms
        return due or machine.state is DeviceState.PLANNED

    def _count_restore(self) -> RestoreCounts:
        scope = self.progress.going_back
        inside = [each for each in self.machines if scope is None or each.stage in scope]
        back = [each for each in inside if each.state is DeviceState.ROLLING_BACK]
        restored = (DeviceState.ROLLED_BACK, DeviceState.RESTORED_LOCALLY)
        return RestoreCounts(
            to_order=sum(each.state in HAS_ORDER and kind(each) == "new" for each in inside),
            restoring=sum(each.present for each in back),
            away=sum(not each.present for each in back),
            restored=sum(each.state in restored for each in inside),
            failed=sum(each.state is DeviceState.FAILED and kind(each) == "old" for each in inside),
        )

    def apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._apply(decision)

    def _apply(self, decision: Decision) -> None:
        progress = self.progress
        match decision:
            case SetState(state, is_open=is_open):
                self._check_end(state)
                self.progress = replace(progress, state=state, is_open=is_open)
            case StartStage(stage):
                self.started.add(stage)
                self.progress = replace(progress, stage=stage, stage_started=True, soak_skipped=False)
            case PassStage(stage):
                if stage + 1 < len(progress.spec.stages):
                    self.progress = replace(progress, stage=stage + 1, stage_started=False, soak_skipped=False)
            case Assign():
                self._assign(decision)
            case Admit(stage):
                for each in self.newcomers:
                    each.stage = stage
                self.machines += self.newcomers
                self.newcomers = []
                self.progress = replace(progress, admitted_ms=self.now_ms)
            case Restore(stages):
                self.progress = replace(progress, going_back=stages)
                self._restore(stages)
            case TimeOut(before_ms):
                for each in self.machines:
                    if each.state is DeviceState.ASSIGNED and each.begun_ms is not None and each.begun_ms < before_ms:
                        each.state = DeviceState.FAILED
            case Retry(attempts, due_ms, _, stage):
                for each in self.machines:
                    fits = attempts in {None, each.attempts} and stage in {None, each.stage}
                    if each.state is DeviceState.FAILED and kind(each) == "new" and fits:
                        each.state, each.due_ms = DeviceState.RETRYING, due_ms
            case SkipSoak():
                self.progress = replace(progress, soak_skipped=True)
            case Approve(None):
                self.progress = replace(progress, approved=True)
            case Approve(stage) if stage is not None:
                self.progress = replace(progress, approved_stages=progress.approved_stages | {stage})
            case AcceptBreach(stage, gate):
                self.progress = replace(progress, accepted=progress.accepted | {(stage, gate)})
            case Close():
                self.progress = replace(progress, is_open=False)
            case _:
                if hasattr(decision, "verdict"):
                    self.tripped = (decision.stage, decision.verdict.gate)  # type: ignore[attr-defined]  # a Breach

    def _assign(self, decision: Assign) -> None:
        bounds = decision.bounds
        if bounds is not None and bounds.meter.issued != self.progress.meter.issued:
            return
        chosen = [
            index
            for index, each in enumerate(self.machines)
            if each.stage == decision.stage
            and self._may_have(each)
            and (bounds is None or (each.present and (bounds.zones is None or each.zone in bounds.zones)))
        ]
        if bounds is not None:
            chosen = chosen[: bounds.limit]
            meter = spend(bounds.meter, len(chosen), len(chosen) * BUILD_BYTES)
            self.progress = replace(self.progress, meter=meter)
        for index in chosen:
            self._order(index, "new", DeviceState.ASSIGNED)

    def _restore(self, stages: tuple[int, ...] | None) -> None:
        for index, each in enumerate(self.machines):
            if (stages is not None and each.stage not in stages) or each.state not in HAS_ORDER or kind(each) != "new":
                continue
            failed = each.state in {DeviceState.FAILED, DeviceState.RETRYING}
            if failed and each.order is not None and each.order.state == "bad":
                self._order(index, "old", DeviceState.RESTORED_LOCALLY)
            elif each.state is DeviceState.ASSIGNED and not heard(each) and not each.present:
                self._order(index, "old", DeviceState.SKIPPED)
            else:
                self._order(index, "old", DeviceState.ROLLING_BACK)

    def _order(self, index: int, what: str, state: DeviceState) -> None:
        machine = self.machines[index]
        if what == "new":
            open_ = self.progress.state is CampaignState.DONE and self.progress.is_open
            assert self.progress.state is CampaignState.RUNNING or open_, "handed out while it should not"
            assert machine.state in {DeviceState.PLANNED, DeviceState.RETRYING}, "a second order for one device"
            assert machine.stage in self.started, "handed out before its stage"
            machine.attempts += 1
        self.orders += 1
        machine.order, machine.state, machine.begun_ms = Order(self.orders, what), state, None
        self.issued.append((index, what))

    def _check_end(self, state: CampaignState) -> None:
        """A campaign does not end while a device that is there is still at it."""
        there = [each for each in self.machines if each.present]
        if state in {CampaignState.ROLLED_BACK, CampaignState.FAILED}:
            assert all(each.state is not DeviceState.ROLLING_BACK for each in there)
            assert all(kind(each) != "new" for each in self.machines)
        if state is CampaignState.DONE and self.progress.state in ACTIVE:
            last = [each for each in there if each.stage == self.progress.stage]  # late ones of earlier stages catch up
            assert all(each.state is not DeviceState.ASSIGNED for each in last)
            assert self.verdict is not NONE or (self.progress.stage, NONE.gate) in self.progress.accepted or not last

    # --- what devices do ------------------------------------------------------------------------------------------

    def move(self, index: int, fails: bool) -> None:
        """One step of a device that is on: it takes its newest order, works on it, ends it, and notes what to report."""
        each = self.machines[index]
        if not each.present:
            return
        if each.order is not None and each.order.number > each.counter:
            each.holds, each.step, each.counter = replace(each.order, state=""), 1, each.order.number
            each.outbox.append((each.counter, "busy"))
        elif each.holds is not None and each.step == 1:
            each.step = 2
            if not fails:
                each.runs = each.holds.kind
            each.outbox.append((each.counter, "bad" if fails else "active"))

    def deliver(self, index: int, acknowledged: bool) -> None:
        """The oldest report reaches the server; where the acknowledgement is lost, it will again."""
        each = self.machines[index]
        if not each.outbox or not each.present:
            return
        number, said = each.outbox[0]
        if acknowledged:
            del each.outbox[0]
        order = each.order
        if order is None or order.number != number or order.state in {"active", "bad"}:
            return
        order.state = said
        if each.begun_ms is None:
            each.begun_ms = self.now_ms
        if said == "busy":
            return
        if order.kind == "new" and said == "active" and each.state in HAS_ORDER:
            each.state, each.active_ms, each.served = DeviceState.ACTIVE, self.now_ms, False
        elif order.kind == "new" and said == "bad" and each.state is DeviceState.ASSIGNED:
            each.state = DeviceState.FAILED
        elif order.kind == "old" and each.state is DeviceState.ROLLING_BACK:
            each.state = DeviceState.ROLLED_BACK if each.runs == "old" else DeviceState.FAILED

    def answer(self, index: int) -> None:
        """Its application asks the device, and the server hears of it."""
        each = self.machines[index]
        if each.state is DeviceState.ACTIVE and each.runs == "new":
            each.served = True


def heard(machine: Machine) -> bool:
    return machine.order is not None and machine.order.state != "issued"


def kind(machine: Machine) -> str | None:
    return machine.order.kind if machine.order is not None else None
