"""A deployment's life on the device as one table: (state, event) -> state. Pure.

Invariants: a transition is stored durably before its action is done; every state says what is done in it, which is also how the
agent goes on after it was killed there; a pair that the table does not hold is a bug, and raises.

>>> after(State.FETCHING, Event.FETCHED)
<State.VERIFYING: 'verifying'>
"""

from __future__ import annotations

from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_contract.strenum import StrEnum


class Event(StrEnum):
    """What happens to a deployment."""

    ACCEPTED = "accepted"  # every condition holds
    REFUSED = "refused"  # some condition does not
    CURRENT = "current"  # the build is the one that serves
    REMOVE = "remove"  # the order is to run nothing
    FETCHED = "fetched"  # all bytes are here
    CORRUPT = "corrupt"  # a file on disk is not what was fetched
    VERIFIED = "verified"  # the build is staged, whole and read-only
    MENDED = "mended"  # the active build is whole again, and has served meanwhile
    HELD = "held"  # a condition of the order does not hold yet
    WARM = "warm"  # its conditions hold, and the gateway is ready to load it
    LOADED = "loaded"  # it is warm and its golden outputs are right
    PASSED = "passed"  # probation is over
    INTERRUPTED = "interrupted"  # the gateway that had it is gone
    REVERTED = "reverted"  # the build before serves again
    FAIL = "fail"
    SUPERSEDED = "superseded"  # a newer order has come
    DAMAGED = "damaged"  # a file of the active build has changed on disk; its runner holds it in memory and serves
    ROTTED = "rotted"  # likewise, but it cannot be started so: the one before serves until it is fetched again
    FELL_BACK = "fell_back"  # an active build starts no more, and the one before serves
    BROKE = "broke"  # an active build starts no more, and there is none before
    RETRY = "retry"  # what was in the way may be gone


class Act(StrEnum):
    """What is done while in a state."""

    EXAMINE = "examine"
    FETCH = "fetch"
    VERIFY = "verify"
    WAIT_TO_LOAD = "wait_to_load"  # until the order's conditions hold, and the gateway can take a candidate
    LOAD = "load"
    SWITCH_AND_JUDGE = "switch_and_judge"
    KEEP_SERVING = "keep_serving"  # the gateway is brought to serve what the record says, and nothing else


TABLE: dict[tuple[State, Event], State] = {
    (State.ASSIGNED, Event.ACCEPTED): State.FETCHING,
    (State.ASSIGNED, Event.REFUSED): State.REFUSED,
    (State.ASSIGNED, Event.CURRENT): State.ACTIVE,
    (State.ASSIGNED, Event.REMOVE): State.REMOVED,
    (State.FETCHING, Event.FETCHED): State.VERIFYING,
    (State.VERIFYING, Event.VERIFIED): State.STAGED,
    (State.VERIFYING, Event.CORRUPT): State.FETCHING,
    (State.VERIFYING, Event.MENDED): State.ACTIVE,
    (State.STAGED, Event.HELD): State.STAGED,
    (State.STAGED, Event.WARM): State.WARMING,
    (State.WARMING, Event.LOADED): State.PROBATION,
    (State.WARMING, Event.INTERRUPTED): State.STAGED,
    (State.PROBATION, Event.PASSED): State.ACTIVE,
    (State.PROBATION, Event.INTERRUPTED): State.STAGED,
    (State.PROBATION, Event.REVERTED): State.ROLLED_BACK,
    (State.PROBATION, Event.SUPERSEDED): State.ROLLED_BACK,
    (State.ACTIVE, Event.DAMAGED): State.FETCHING,
    (State.ACTIVE, Event.ROTTED): State.FETCHING,
    (State.ACTIVE, Event.FELL_BACK): State.ROLLED_BACK,
    (State.ACTIVE, Event.BROKE): State.FAILED,
    (State.FAILED, Event.RETRY): State.ASSIGNED,
    (State.REFUSED, Event.RETRY): State.ASSIGNED,
    **{
        (state, event): State.FAILED
        for state in (State.ASSIGNED, State.FETCHING, State.VERIFYING, State.STAGED, State.WARMING)
        for event in (Event.FAIL, Event.SUPERSEDED)
    },
}

RESUME: dict[State, Act] = {
    State.ASSIGNED: Act.EXAMINE,
    State.FETCHING: Act.FETCH,
    State.VERIFYING: Act.VERIFY,
    State.STAGED: Act.WAIT_TO_LOAD,
    State.WARMING: Act.LOAD,
    State.PROBATION: Act.SWITCH_AND_JUDGE,
    State.ACTIVE: Act.KEEP_SERVING,
    State.REFUSED: Act.KEEP_SERVING,
    State.FAILED: Act.KEEP_SERVING,
    State.ROLLED_BACK: Act.KEEP_SERVING,
    State.REMOVED: Act.KEEP_SERVING,
}

# What may go away without anybody giving a new order: then the same order is tried again, later and later.
PASSING = frozenset(
    {Reason.NO_SPACE, Reason.STORAGE_ERROR, Reason.FETCH_FAILED, Reason.METADATA_UNAVAILABLE, Reason.PINNED}
)
# What another bundle with the same order may mend.
_MENDED = PASSING | {
    Reason.BAD_SIGNATURE,
    Reason.WRONG_MANIFEST,
    Reason.NOT_RELEASED,
    Reason.OLD_RELEASE,
    Reason.METADATA_INVALID,
    Reason.METADATA_UNSIGNED,
    Reason.METADATA_EXPIRED,
    Reason.METADATA_ROLLBACK,
    Reason.METADATA_MISMATCH,
    Reason.METADATA_TOO_LARGE,
    Reason.DIGEST_MISMATCH,
}


class LifecycleError(Exception):
    """This cannot happen to a deployment in this state."""


def after(state: State, event: Event) -> State:
    """The state that follows; raises `LifecycleError` if the table does not know the pair."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise LifecycleError(f"a deployment that is {state} cannot be {event}") from None


def may_retry(state: State, reason: Reason) -> bool:
    """Whether a deployment that ended so may be tried again under the same order."""
    return (state, Event.RETRY) in TABLE and reason in PASSING


def may_mend(state: State, reason: Reason) -> bool:
    """Whether a deployment that ended so may be tried again when its order comes once more, with other bytes beside it."""
    return (state, Event.RETRY) in TABLE and reason in _MENDED
