"""Orders come in, over the network or on a stick: one that is true, new and for this device is followed, another one is turned away.

Invariant: nothing of an order is written, and nothing believed of it, before its signature was checked.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from covey_agent.book import Book
from covey_agent.bundle import BundleError, Bundles
from covey_agent.core.acceptance import Refusal, authenticate, open_manifest
from covey_agent.core.reports import report_of_refusal
from covey_agent.core.state import Deployment
from covey_agent.jobs import Jobs, Key
from covey_agent.keyring import Keyring
from covey_agent.transitions import Present
from covey_agent.tuf.vouching import Vouching
from covey_contract.errors import ContractError
from covey_contract.messages import Assignment, Order, Report
from covey_contract.reasons import Reason
from covey_contract.wire import decode

log = logging.getLogger(__name__)

REFRESH = "refresh"
# An order by an unknown key makes the device ask for the newest root, not more often than this.
_ASK_AGAIN_S = 60.0


class Follower(Protocol):
    """Who carries out what is let in."""

    def follow(self, order: Assignment, payload: bytes) -> bool:
        """A true and newer order. Whether it could be stored."""

    def go_on(self, deployment: Deployment, payload: bytes) -> None:
        """One that is being followed has come once more, with a bundle. Raises `OSError`."""


class Intake:
    """`effective_ms`: Unix milliseconds that never go back beyond what was signed; `clock` as it is."""

    def __init__(
        self,
        device: str,
        keyring: Keyring,
        present: Present,
        *,
        book: Book,
        jobs: Jobs,
        bundles: Bundles,
        vouching: Vouching | None,
        follower: Follower,
        report: Callable[[Report], None],
        clock: Callable[[], int],
        effective_ms: Callable[[], int],
    ) -> None:
        self._device = device
        self._keyring = keyring
        self._present = present
        self._book = book
        self._jobs = jobs
        self._bundles = bundles
        self._vouching = vouching
        self._follower = follower
        self._report = report
        self._clock = clock
        self._effective_ms = effective_ms
        # An order that waits for the newest root, and the bundle that it came in.
        self._unknown_key: tuple[bytes, Path | None] | None = None
        self._asked = -_ASK_AGAIN_S
        self._unstored: deque[bytes] = deque(maxlen=8)
        self._refused: deque[str] = deque(maxlen=64)

    def tick(self) -> None:
        """Time has passed: what could not be stored is tried again."""
        for payload in [self._unstored.popleft() for _ in range(len(self._unstored))]:
            self.order(payload)

    def order(self, payload: bytes) -> None:
        """An order has arrived, from whomever. What is not a true, new order for this device changes nothing."""
        try:
            order = decode(Order, payload)
        except ContractError as error:
            log.warning("an order that cannot be read: %s", error)
            return
        try:
            assignment = self._authenticate(order, self._book.state.counter)
        except Refusal as refusal:
            if refusal.reason is not Reason.BAD_SIGNATURE or not self._ask_for_keys(payload):
                self._turn_away(order, refusal)
            return
        self._follow(assignment, payload)

    def install(self, payload: bytes, bundle: Path) -> Refusal | None:
        """An order has come in a bundle: it is held to what one that came over the network is held to, and followed from there. None:
        it is followed, or will be looked at again when the bundle's root has been read.

        What is not signed as it should be is turned away before anything is written, the manifest too: the order may be good, and
        come again. Raises `BundleError`, `ContractError`, `OSError`."""
        order = decode(Order, payload)
        known = self._known(order)
        try:
            floor = self._book.state.counter if known is None else known.order.counter - 1
            assignment = self._authenticate(order, floor)
            open_manifest(assignment, order.manifest, self._keyring.trust)
        except Refusal as refusal:
            if refusal.reason is Reason.BAD_SIGNATURE and self._ask_for_keys(payload, bundle):
                return None
            self._turn_away(order, refusal)
            return refusal
        self._bundles.attach(assignment.build, bundle)
        if known is None:
            self._follow(assignment, payload)
        else:
            self._follower.go_on(known, payload)
        return None

    def refreshed(self) -> None:
        """The newest root has been read, or could not be: the order that waited for it is looked at once more."""
        waiting, self._unknown_key = self._unknown_key, None
        if self._vouching is not None:
            self._keyring.follow(self._vouching.directors())
        if waiting is None:
            return
        payload, bundle = waiting
        if bundle is None:
            self.order(payload)
            return
        try:
            self.install(payload, bundle)
        except (BundleError, ContractError) as error:
            log.warning("an order from %s is not followed: %s", bundle, error)

    def _authenticate(self, order: Order, counter: int) -> Assignment:
        """Raises `Refusal`. `counter`: the highest that is too old."""
        return authenticate(
            order.assignment,
            trust=self._keyring.trust,
            device=self._device,
            counter=counter,
            now_ms=self._effective_ms(),
        )

    def _known(self, order: Order) -> Deployment | None:
        """The deployment that follows this very order. Nothing is believed of the order yet."""
        try:
            claimed = decode(Assignment, order.assignment.payload)
        except ContractError:
            return None
        deployment = self._book.state.record(claimed.model).deployment
        return deployment if deployment is not None and deployment.order == claimed else None

    def _follow(self, assignment: Assignment, payload: bytes) -> None:
        if not self._follower.follow(assignment, payload):
            self._unstored.append(payload)

    def _ask_for_keys(self, payload: bytes, bundle: Path | None = None) -> bool:
        """An order by an unknown key: root may name another by now. Whether it is asked for; the order is looked at again then."""
        if self._vouching is None or self._present.now < self._asked + _ASK_AGAIN_S:
            return False
        self._asked = self._present.now
        self._unknown_key = (payload, bundle)
        vouching, floor_ms = self._vouching, self._effective_ms()
        return self._jobs.submit(Key("", REFRESH, ""), lambda: vouching.refresh(floor_ms, bundle))

    def _turn_away(self, order: Order, refusal: Refusal) -> None:
        known = {
            record.deployment.order.id for record in self._book.state.models.values() if record.deployment is not None
        }
        if refusal.reason is Reason.OLD_COUNTER and refusal.order is not None and refusal.order.id in known:
            return  # it is only told again
        claimed = refusal.order
        if claimed is None:
            # What is not signed is read for one end only: to name in the report what was refused.
            try:
                claimed = decode(Assignment, order.assignment.payload)
            except ContractError:
                claimed = None
        log.warning("an order is refused: %s: %s", refusal.reason, refusal.detail)
        if claimed is None or (told := f"{refusal.reason} {claimed.id}") in self._refused:
            return
        self._refused.append(told)
        record = self._book.state.record(claimed.model)
        self._report(report_of_refusal(claimed, refusal, record, now_ms=self._clock()))
