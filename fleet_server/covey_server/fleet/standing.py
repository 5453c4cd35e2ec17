"""How a device stands against its orders, as conditions on `Device` that the database evaluates for all devices at once.

`behind`: it should run another build than it does, and is on the way. `drifted`: it had reached what it should run, and runs
something else now. `failed`: its newest deployment ended badly. `on_target`: it has orders and runs what they say. `idle`: nothing
was ever ordered.
"""

from __future__ import annotations

from typing import Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, exists, func, select

from covey_contract.lifecycle import BAD, State
from covey_server.db.tables import AssignmentRow, Build, Desired, Device, Reported

Standing = Literal["on_target", "behind", "drifted", "failed", "idle"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)
_BAD = sorted(str(state) for state in BAD)


def condition(standing: Standing) -> ColumnElement[bool]:
    """Whether a device stands so with any of its models; `on_target`: with all of them."""
    if standing == "idle":
        return ~Device.id.in_(select(Desired.device))
    if standing == "failed":
        return Device.id.in_(select(Reported.device).where(Reported.state.in_(_BAD)))
    if standing == "on_target":
        off = off_target().where(Desired.device == Device.id)
        return and_(Device.id.in_(select(Desired.device)), ~exists(off.correlate(Device)))
    off = off_target()
    reached = AssignmentRow.state == State.ACTIVE.value
    return Device.id.in_(off.where(reached if standing == "drifted" else ~reached))


def off_target() -> Select[str]:
    """The devices that hold another build than they should; one that should hold none is never among them."""
    return (
        select(Desired.device)
        .join(AssignmentRow, AssignmentRow.id == Desired.assignment)
        .join(Build, Build.id == AssignmentRow.build_id)
        .outerjoin(Reported, and_(Reported.device == Desired.device, Reported.model == Desired.model))
        .where(
            func.coalesce(AssignmentRow.why["action"].as_string(), "run") == "run",
            func.coalesce(Reported.active, "") != func.coalesce(Build.digest, ""),
        )
    )
