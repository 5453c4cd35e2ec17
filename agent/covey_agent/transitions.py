"""Moves of a model's deployment through the lifecycle table: on disk first, then told to the server.

What the parts that carry out a deployment (`intake`, `acquisition`, `trial`) share: they all move it, and none of them stores
anything of it by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from covey_agent.book import Book
from covey_agent.bundle import Bundles
from covey_agent.core.lifecycle import Event
from covey_agent.core.reports import report_of
from covey_agent.core.state import ModelRecord, moved
from covey_contract.lifecycle import State
from covey_contract.messages import Report
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

# In which a build's bytes may still be needed from where they come.
FETCHED_IN = frozenset({State.ASSIGNED, State.FETCHING, State.VERIFYING})
_DETAIL_MAX = 1900


@dataclass
class Present:
    """What the loop last said: monotonic seconds, and whether the server can be reached."""

    now: float = 0.0
    connected: bool = False


class Transitions:
    """`report` spools what the server shall know; `clock` is Unix milliseconds."""

    def __init__(
        self, book: Book, bundles: Bundles, clock: Callable[[], int], report: Callable[[Report], None]
    ) -> None:
        self._book = book
        self._bundles = bundles
        self._clock = clock
        self._report = report

    def move(
        self,
        model: str,
        event: Event,
        reason: Reason = Reason.NONE,
        detail: str = "",
        until_ms: int | None = None,
    ) -> None:
        """Raises `OSError`, and then nothing has changed."""
        old = self._book.state.record(model)
        new = moved(old, event, now_ms=self._clock(), reason=reason, detail=detail[:_DETAIL_MAX], until_ms=until_ms)
        self._book.change(lambda state: state.with_record(model, new))
        if new.deployment is not None and new.deployment.state not in FETCHED_IN and event is not Event.SUPERSEDED:
            self._bundles.drop(new.deployment.build)
        self.tell(model, new)

    def tell(self, model: str, record: ModelRecord) -> None:
        """The server shall know of it."""
        deployment = record.deployment
        if deployment is None:
            return
        words = " ".join(word for word in (deployment.reason, deployment.detail) if word and word != Reason.NONE)
        log.info("%s %s: %s%s", model, deployment.order.version, deployment.state, f" ({words})" if words else "")
        self._report(report_of(record, deployment, now_ms=self._clock()))
