"""The orders that are being followed, on disk as they came: `orders/COUNTER.json`, written before the book knows of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from covey_agent import durable
from covey_agent.core.acceptance import Refusal, open_manifest
from covey_agent.errors import StepError
from covey_contract.errors import ContractError
from covey_contract.manifest import Manifest
from covey_contract.messages import Assignment, Order
from covey_contract.reasons import Reason
from covey_contract.signing import Trust
from covey_contract.wire import decode

_KNOWN_MANIFESTS = 8


class OrderFolder:
    """Signatures are checked again whenever an order is read back: what is on disk is not trusted either."""

    def __init__(self, folder: Path, trust: Trust) -> None:
        self._folder = folder
        self._trust = trust
        self._manifests: dict[int, tuple[Manifest, bytes]] = {}

    def store(self, order: Assignment, payload: bytes) -> None:
        """Raises `OSError`."""
        durable.write(self._path(order.counter), payload)

    def read(self, order: Assignment) -> Order:
        """Raises `StepError`."""
        try:
            return decode(Order, self._path(order.counter).read_bytes())
        except OSError as error:
            reason = Reason.INTERNAL if isinstance(error, FileNotFoundError) else Reason.STORAGE_ERROR
            raise StepError(reason, f"the stored order {order.id} cannot be read: {error}") from error
        except ContractError as error:
            raise StepError(Reason.INTERNAL, f"the stored order {order.id} cannot be read: {error}") from error

    def manifest(self, order: Assignment) -> tuple[Manifest, bytes]:
        """The manifest of the order's build, and its exact bytes. Raises `StepError`."""
        if order.counter not in self._manifests:
            try:
                opened = open_manifest(order, self.read(order).manifest, self._trust)
            except Refusal as refusal:
                raise StepError(refusal.reason, refusal.detail) from refusal
            if len(self._manifests) >= _KNOWN_MANIFESTS:
                self._manifests.clear()
            self._manifests[order.counter] = opened
        return self._manifests[order.counter]

    def sweep(self, keep: Collection[int]) -> None:
        """Remove the orders that nobody follows any longer. `keep`: counters."""
        names = {self._path(counter).name for counter in keep}
        for path in self._folder.glob("*.json"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _path(self, counter: int) -> Path:
        return self._folder / f"{counter}.json"
