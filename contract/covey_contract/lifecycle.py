"""The states of a deployment on a device, as both sides name them.

assigned -> fetching -> verifying -> staged -> warming -> probation -> active, or at any step -> refused, failed or
rolled_back. The table of transitions is the agent's; the server only reads the states.
"""

from __future__ import annotations

from covey_contract.strenum import StrEnum


class State(StrEnum):
    ASSIGNED = "assigned"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGED = "staged"
    WARMING = "warming"
    PROBATION = "probation"
    ACTIVE = "active"
    REFUSED = "refused"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    REMOVED = "removed"

    @property
    def final(self) -> bool:
        """Whether the deployment has ended, well or badly."""
        return self in FINAL


FINAL = frozenset({State.ACTIVE, State.REFUSED, State.FAILED, State.ROLLED_BACK, State.REMOVED})
BAD = frozenset({State.REFUSED, State.FAILED, State.ROLLED_BACK})
