"""From an order to a build that lies on the device, whole and verified: examine, fetch, verify. One act for each of these states."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from covey_agent import fetch
from covey_agent.book import Book
from covey_agent.bundle import Bundles
from covey_agent.core.acceptance import (
    Machine,
    Refusal,
    Room,
    Vouched,
    check_release,
    examine,
    open_manifest,
    release_path,
)
from covey_agent.core.lifecycle import PASSING, Event
from covey_agent.core.reports import report_of
from covey_agent.core.state import AgentState, Deployment, ModelRecord
from covey_agent.downloads import Downloads
from covey_agent.errors import StepError
from covey_agent.jobs import Finished, Jobs, Key
from covey_agent.keyring import Keyring
from covey_agent.orders import OrderFolder
from covey_agent.settings import Settings
from covey_agent.store import CorruptError, Store
from covey_agent.transitions import Present, Transitions
from covey_agent.tuf.vouching import Vouching
from covey_contract.manifest import Manifest
from covey_contract.messages import Action, Assignment, Report
from covey_contract.reasons import Reason

VERIFY, VOUCH = "verify", "vouch"
_CORRUPT_LIMIT = 3


class Acquisition:
    """`free` gives the disk's free bytes; `collect` makes room; `report` tells progress; `effective_ms`: see `intake`."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        present: Present,
        transitions: Transitions,
        *,
        book: Book,
        store: Store,
        jobs: Jobs,
        orders: OrderFolder,
        downloads: Downloads,
        bundles: Bundles,
        vouching: Vouching | None,
        machine: Callable[[], Machine],
        free: Callable[[], int],
        collect: Callable[[], None],
        report: Callable[[Report], None],
        clock: Callable[[], int],
        effective_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._present = present
        self._move = transitions.move
        self._book = book
        self._store = store
        self._jobs = jobs
        self._orders = orders
        self._downloads = downloads
        self._bundles = bundles
        self._vouching = vouching
        self._machine = machine
        self._free = free
        self._collect = collect
        self._report = report
        self._clock = clock
        self._effective_ms = effective_ms
        self._vouched: dict[int, Vouched] = {}  # by the order's counter
        self._corrupt: dict[int, int] = {}

    # --- examine ----------------------------------------------------------------------------------------------------

    def examine(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """May this order be followed here? Its release is asked for first, where there is a repository. Raises `StepError`, `OSError`."""
        order = deployment.order
        if record.pinned is not None and order.build != record.active:
            self._move(model, Event.REFUSED, Reason.PINNED, record.pinned)
            return
        if order.action is Action.REMOVE:
            self._move(model, Event.REMOVE)
            return
        if self._jobs.is_pending(_vouch_key(order)):
            return
        self._collect()
        try:
            if order.build == record.active:
                self._move(model, Event.CURRENT)
                return
            envelope, trust = self._orders.read(order).manifest, self._keyring.trust
            manifest, _ = open_manifest(order, envelope, trust)
            fit = examine(
                order,
                envelope,
                trust=trust,
                machine=self._machine(),
                room=self._room(manifest, order.build),
                now_ms=self._effective_ms(),
            )
            if self._vouching is not None:
                vouched = self._vouched.pop(order.counter, None)
                if vouched is None:
                    self._ask_for_release(self._vouching, order, release_path(manifest))
                    return
                floor, retained = record.release_floor, order.build == record.previous
                check_release(fit, vouched, floor=floor, retained=retained)
                self._note_release(model, vouched)
        except Refusal as refusal:
            self._move(model, Event.REFUSED, refusal.reason, refusal.detail)
            return
        self._move(model, Event.ACCEPTED, detail="; ".join(fit.notes))

    def _ask_for_release(self, vouching: Vouching, order: Assignment, path: str) -> None:
        floor_ms = self._effective_ms()
        # The network knows more than any stick.
        bundle = self._bundles.path(order.build) if not self._present.connected else None

        def work() -> None:
            self._vouched[order.counter] = vouching.ask(path, floor_ms, bundle)

        self._jobs.submit(_vouch_key(order), work)

    def heard_of_release(self, model: str, finished: Finished) -> None:
        """Raises `StepError`, `GatewayError` where the order is to fail over it."""
        trouble = finished.trouble
        if isinstance(trouble, StepError) and trouble.reason not in PASSING and trouble.reason is not Reason.INTERNAL:
            self._move(model, Event.REFUSED, trouble.reason, trouble.detail)
        elif trouble is not None and not isinstance(trouble, CorruptError):
            raise trouble

    def _note_release(self, model: str, vouched: Vouched) -> None:
        """The release's counter, and what else its metadata have shown, on disk before the build is fetched. Raises `OSError`."""

        def edit(state: AgentState) -> AgentState:
            record = state.record(model)
            assert record.deployment is not None, "it is being examined"  # noqa: S101
            deployment = msgspec.structs.replace(record.deployment, release=vouched.release)
            state = state.with_record(model, msgspec.structs.replace(record, deployment=deployment))
            return msgspec.structs.replace(state, time_floor_ms=max(state.time_floor_ms, vouched.time_ms))

        self._book.change(edit)
        self._keyring.follow(vouched.director)

    def _room(self, manifest: Manifest, build: str) -> Room:
        missing = sum(entry.size for entry in self._store.missing(manifest))
        partial = self._downloads.on_disk(build)
        return Room(
            free=self._free(),
            margin=self._settings.margin,
            quota=self._settings.quota,
            used=self._store.used(),
            have=manifest.size - missing + min(partial, missing + manifest.table.size),
        )

    # --- fetch ------------------------------------------------------------------------------------------------------

    def fetch(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """Raises `StepError`, `OSError`."""
        manifest, _ = self._orders.manifest(deployment.order)
        if self._downloads.go_on(
            *(model, deployment.build, manifest, self._present.now),
            connected=self._present.connected or self._bundles.path(deployment.build) is not None,
            offer=lambda: self._orders.read(deployment.order).offer,
        ):
            self.stop(model)
            self._move(model, Event.FETCHED)
        elif (progress := self._downloads.progress(model)) is not None:
            fraction, fetched = progress
            self._report(report_of(record, deployment, now_ms=self._clock(), progress=fraction, fetched=fetched))

    def stop(self, model: str) -> None:
        """Its fetch, if there is one, ends here; what it has stays, and is counted. Raises `OSError`."""
        fetched = self._downloads.stop(model)
        record = self._book.state.record(model)
        if record.deployment is None or not fetched:
            return
        deployment = msgspec.structs.replace(record.deployment, bytes_fetched=record.deployment.bytes_fetched + fetched)
        new = msgspec.structs.replace(record, deployment=deployment)
        self._book.change(lambda state: state.with_record(model, new))

    # --- verify -----------------------------------------------------------------------------------------------------

    def verify(self, model: str, record: ModelRecord, deployment: Deployment) -> None:
        """Every byte is read once more, in the jobs' thread. Raises `StepError`."""
        del record
        manifest, manifest_bytes = self._orders.manifest(deployment.order)
        folder = self._downloads.folder(deployment.build)

        def work() -> None:
            fetch.adopt_all(manifest, folder, self._store)
            self._store.stage(manifest, manifest_bytes)

        self._jobs.submit(Key(model, VERIFY, deployment.build, deployment.order.counter), work)

    def verified(self, model: str, deployment: Deployment, finished: Finished) -> None:
        """Raises `StepError`, `GatewayError` where the deployment is to fail over it, and `OSError`."""
        if finished.trouble is None:
            whole = self._book.state.record(model).active == deployment.build
            self._move(model, Event.MENDED if whole else Event.VERIFIED)
            self._downloads.drop(deployment.build)
        elif isinstance(finished.trouble, CorruptError):
            tries = self._corrupt[deployment.order.counter] = self._corrupt.get(deployment.order.counter, 0) + 1
            if tries >= _CORRUPT_LIMIT:
                self._downloads.drop(deployment.build)
                raise StepError(Reason.DIGEST_MISMATCH, f"{finished.trouble}, {tries} times")
            self._move(model, Event.CORRUPT, Reason.DIGEST_MISMATCH, str(finished.trouble))
        else:
            raise finished.trouble


def _vouch_key(order: Assignment) -> Key:
    return Key(order.model, VOUCH, order.build, order.counter)
