"""What the server is told of a deployment: the record as a report. Pure."""

from __future__ import annotations

from covey_agent.core.acceptance import Refusal
from covey_agent.core.state import Deployment, ModelRecord
from covey_contract.lifecycle import State
from covey_contract.messages import Assignment, Report


def report_of(
    record: ModelRecord, deployment: Deployment, *, now_ms: int, progress: float | None = None, fetched: int = 0
) -> Report:
    """`fetched`: bytes of a fetch that is under way; `seq` is given by the outbox."""
    order = deployment.order
    return Report(
        seq=0,
        time_ms=now_ms,
        assignment=order.id,
        counter=order.counter,
        model=order.model,
        version=order.version,
        build=order.build,
        state=deployment.state,
        reason=deployment.reason,
        detail=deployment.detail[:2000],
        previous=record.active if record.active != order.build else record.previous,
        bytes_fetched=deployment.bytes_fetched + fetched,
        progress=progress,
        waits_until_ms=deployment.waits_until_ms,
    )


def report_of_refusal(claimed: Assignment, refusal: Refusal, record: ModelRecord, *, now_ms: int) -> Report:
    """Of an order that was turned away at the door and left no deployment. What it claims may be forged."""
    return Report(
        seq=0,
        time_ms=now_ms,
        assignment=claimed.id,
        counter=claimed.counter,
        model=claimed.model,
        version=claimed.version,
        build=claimed.build,
        state=State.REFUSED,
        reason=refusal.reason,
        detail=refusal.detail[:2000],
        previous=record.active,
    )
