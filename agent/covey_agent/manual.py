"""What people at the device may decide by themselves: to go back to the build before, and to stay with what serves (pin).

Neither needs a signature: both builds were verified, and nothing that is not here already can come of it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from covey_agent.asks import Answer, GoBack, Pin, Unpin
from covey_agent.book import Book
from covey_agent.core.lifecycle import Event
from covey_agent.core.state import ModelRecord, moved
from covey_agent.gateway.control_api import Revert
from covey_agent.serving import Serving
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason

_WHY_MAX = 200
_BY = "by a person at the device"


class Manual:
    """`changed` is told of each record that changed, after it is on disk."""

    def __init__(
        self, book: Book, serving: Serving, clock: Callable[[], int], changed: Callable[[str, ModelRecord], None]
    ) -> None:
        self._book = book
        self._serving = serving
        self._clock = clock
        self._changed = changed

    def obey(self, ask: GoBack | Pin | Unpin) -> Answer:
        if ask.model not in self._book.state.models:
            return Answer(False, f"there is no model {ask.model!r} on this device")
        try:
            if isinstance(ask, GoBack):
                return self._go_back(ask.model)
            return self._pin(ask.model, ask.why[:_WHY_MAX] or _BY if isinstance(ask, Pin) else None)
        except OSError as error:
            return Answer(False, f"the state cannot be stored: {error}")

    def _pin(self, model: str, why: str | None) -> Answer:
        record = self._book.state.record(model)
        self._store(model, msgspec.structs.replace(record, pinned=why))
        if why is None:
            return Answer(
                True, f"{model} follows orders again" if record.pinned is not None else f"{model} was not pinned"
            )
        return Answer(True, f"{model} stays with build {(record.active or 'none')[:12]} until it is unpinned")

    def _go_back(self, model: str) -> Answer:
        record, deployment = self._book.state.record(model), self._book.state.record(model).deployment
        now_ms = self._clock()
        if deployment is not None and deployment.state is State.PROBATION and record.active is not None:
            new = moved(record, Event.REVERTED, now_ms=now_ms, reason=Reason.OPERATOR, detail=_BY)
            self._store(model, new)
            self._serving.ask(Revert(model=model, reason=Reason.OPERATOR, detail=_BY))
        elif deployment is not None and not deployment.state.final:
            return Answer(
                False,
                f"{model} {deployment.order.version} does not serve yet: it is {deployment.state}; `pin` stops it",
            )
        elif record.previous is None:
            return Answer(False, f"there is no build of {model} before the one that serves")
        elif deployment is not None and deployment.state is State.ACTIVE:
            new = moved(record, Event.FELL_BACK, now_ms=now_ms, reason=Reason.OPERATOR, detail=_BY)
            self._store(model, new)
        else:
            new = msgspec.structs.replace(record, active=record.previous, previous=None)
            self._store(model, new)
        self._changed(model, new)
        return Answer(True, f"{model} goes back to build {(new.active or 'none')[:12]}")

    def _store(self, model: str, record: ModelRecord) -> None:
        """Raises `OSError`, and then nothing has changed."""
        self._book.change(lambda state: state.with_record(model, record))
