"""What a device's words mean for what the server believes: pure decisions over plain values.

Reports may come twice, late and out of order, and a broker may replay old orders to a device. A state never goes back
because of an older report, and a refusal of a replayed order never harms the deployment it was about.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from covey_contract.lifecycle import FINAL, State
from covey_contract.messages import ModelStatus, Report
from covey_contract.reasons import Reason
from covey_server.fleet.assignments import ISSUED, SUPERSEDED

# An order that was refused for these is right but for its age: a newer one is issued, and the version released again.
TOO_OLD = frozenset({Reason.OLD_COUNTER, Reason.OLD_RELEASE})
_FINISHED = {str(state) for state in FINAL}


@dataclass(frozen=True)
class Slots:
    """What a device says it holds of one model (a row of `reported`, without its key)."""

    active: str | None = None
    previous: str | None = None
    candidate: str | None = None
    assignment: str | None = None
    state: str | None = None
    reason: str = str(Reason.NONE)
    detail: str = ""


def slots_of(status: ModelStatus) -> Slots:
    return Slots(
        active=status.active,
        previous=status.previous,
        candidate=status.candidate,
        assignment=status.assignment,
        state=None if status.state is None else str(status.state),
        reason=str(status.reason),
        detail=status.detail,
    )


def refuses_replay(report: Report) -> bool:
    return report.state is State.REFUSED and report.reason in TOO_OLD


def slots_after(slots: Slots, report: Report) -> Slots:
    """The slots once the report is believed; the caller has seen to it that it is not about an older assignment."""
    if refuses_replay(report):
        return slots
    told = replace(
        slots,
        assignment=report.assignment,
        state=str(report.state),
        reason=str(report.reason),
        detail=report.detail,
    )
    if report.state in {State.PROBATION, State.ACTIVE}:
        return replace(told, active=report.build, previous=report.previous, candidate=None)
    if report.state is State.ROLLED_BACK:
        return replace(told, active=report.previous, previous=None, candidate=None)
    if report.state is State.REMOVED:
        return replace(told, active=None, previous=None, candidate=None)
    if report.state in {State.REFUSED, State.FAILED}:
        return replace(told, candidate=None)
    return replace(told, candidate=report.build)


class Verdict(enum.Enum):
    """What a newer report does to its assignment."""

    IGNORE = enum.auto()
    ADVANCE = enum.auto()
    RENEW = enum.auto()  # the order was refused for its age alone: it stays issued, to be issued anew


def judge(state: str, expires_ms: int, report: Report, now_ms: int) -> Verdict:
    """`state`, `expires_ms`: of the assignment as it stands; the report is the newest about it."""
    if state == SUPERSEDED:
        return Verdict.IGNORE
    if refuses_replay(report):
        return Verdict.RENEW if state == ISSUED else Verdict.IGNORE
    if state == ISSUED and report.reason is Reason.EXPIRED and expires_ms <= now_ms:
        return Verdict.RENEW
    if state in _FINISHED and not report.state.final:
        return Verdict.IGNORE
    return Verdict.ADVANCE


def hello_advances(state: str, said: State) -> bool:
    """Whether a hello's word on an assignment counts: reports tell it in order, a hello only if they are behind."""
    return state == ISSUED or (said.final and state not in {*_FINISHED, SUPERSEDED})


class Answer(enum.Enum):
    """What a hello calls for, for one desired assignment."""

    NOTHING = enum.auto()
    SEND = enum.auto()
    RENEW = enum.auto()


def answer_hello(*, assignment: str, counter: int, state: str, status: ModelStatus | None, last_counter: int) -> Answer:
    """`status`: what the device said of the assignment's model; `last_counter`: the newest it has accepted, of any model."""
    if status is not None and status.assignment == assignment:
        return Answer.NOTHING
    if last_counter < counter:
        return Answer.SEND
    # The device went past this counter without the order: it would refuse it as old.
    lost = state == ISSUED or (state == str(State.ACTIVE) and status is None)
    return Answer.RENEW if lost else Answer.NOTHING
