"""The fetches that are under way, at most one for each model, and the folders in which they lie."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from covey_agent import fetch
from covey_agent.delta import DeltaFetch, can_apply
from covey_agent.errors import StepError
from covey_agent.store import Store
from covey_contract.blocks import Block
from covey_contract.manifest import FileEntry, Manifest
from covey_contract.messages import BlockRequest, Broadcast, Offer

log = logging.getLogger(__name__)

_PROGRESS_STEP = 0.1


class Downloads:
    """`request` asks the server for blocks, `listen` begins or ends to hear what is broadcast of a build, `web` fetches them
    otherwise where it can."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        limits: fetch.FetchLimits,
        request: Callable[[BlockRequest], None],
        listen: Callable[[str, bool], None] = lambda _build, _on: None,
        web: Callable[[BlockRequest, FileEntry, int, Offer], bool] = lambda _request, _entry, _size, _offer: False,
    ) -> None:
        self._folder = folder
        self._store = store
        self._limits = limits
        self._request = request
        self._listen = listen
        self._web = web
        self._offers: dict[str, Offer] = {}
        self._fetchers: dict[str, fetch.Fetcher] = {}
        self._deltas: dict[str, DeltaFetch] = {}
        self._delta_bytes: dict[str, int] = {}  # fetched, of those that are over
        self._told: dict[str, float] = {}

    def folder(self, build: str) -> Path:
        return self._folder / build

    def go_on(
        self,
        model: str,
        build: str,
        manifest: Manifest,
        now: float,
        *,
        connected: bool,
        offer: Callable[[], Offer] = Offer,
    ) -> bool:
        """Begin or go on; whether all is here. `now` is monotonic seconds; `offer` is asked once, at the beginning. Raises `StepError`."""
        fetcher = self._fetchers.get(model)
        if fetcher is None:
            if not self._store.missing(manifest):
                return True
            fetcher = fetch.Fetcher(build, manifest, self.folder(build), self._store, self._limits)
            fetcher.open()
            self._told[model] = fetcher.fraction
            self._fetchers[model] = fetcher
            if not fetcher.done:
                self._begin(model, fetcher, offer(), now)
        if model in self._deltas:
            self._go_on_with_delta(model, fetcher, now, connected=connected)
        self._ask(fetcher, self._offers.get(model, Offer()), now, connected=connected)
        return fetcher.done

    def _begin(self, model: str, fetcher: fetch.Fetcher, offer: Offer, now: float) -> None:
        self._offers[model] = offer
        about = fetcher
        if offer.delta is not None and self._store.has_build(offer.delta.base) and can_apply():
            delta = DeltaFetch(offer.delta, fetcher.folder, self._store, self._limits)
            if not delta.over:
                self._deltas[model] = delta
                fetcher.only_table = True
                about = delta.fetcher
        self._listen(about.build, True)
        # A broadcast that is about the other of the two is of no use to this device.
        if offer.broadcast and (about is not fetcher or offer.delta is None):
            about.expect_broadcast(now)

    def _go_on_with_delta(self, model: str, fetcher: fetch.Fetcher, now: float, *, connected: bool) -> None:
        """The block table first, then the delta, before anything else is asked for. Raises `StepError`."""
        if not fetcher.knows_blocks:
            return
        delta = self._deltas[model]
        try:
            delta.open()
            self._ask(delta.fetcher, self._offers[model], now, connected=connected)
        except StepError as error:
            log.warning("the delta is given up: %s", error)
            delta.end()
        if delta.fetcher.done:
            delta.apply(fetcher)
        if delta.over:
            self._end_delta(model)
            fetcher.only_table = False
            self._listen(fetcher.build, True)

    def _end_delta(self, model: str) -> None:
        delta = self._deltas.pop(model, None)
        if delta is not None:
            self._listen(delta.fetcher.build, False)
            self._delta_bytes[model] = delta.fetcher.progress.bytes
            delta.close()

    def _ask(self, fetcher: fetch.Fetcher, offer: Offer, now: float, *, connected: bool) -> None:
        for request in fetcher.tick(now, connected=connected):
            entry = fetcher.manifest.wire_files()[request.file]
            if not self._web(request, entry, fetcher.manifest.block_size, offer):
                self._request(request)

    def _all(self) -> list[tuple[str, fetch.Fetcher]]:
        """What is fetched now: models and fetchers."""
        deltas = [(model, delta.fetcher) for model, delta in self._deltas.items()]
        return [*self._fetchers.items(), *deltas]

    def note(self, message: Broadcast, now: float) -> None:
        """How a broadcast stands."""
        for _, fetcher in self._all():
            if fetcher.build == message.build:
                fetcher.note(message, now)

    def take(self, block: Block, now: float, *, broadcast: bool = False) -> list[tuple[str, StepError | None]]:
        """Give the block to whom it belongs. The models that can go on, with what went wrong."""
        eager: list[tuple[str, StepError | None]] = []
        for model, fetcher in self._all():
            try:
                fetcher.block(block, now, broadcast=broadcast)
            except StepError as error:
                if fetcher is self._fetchers[model]:
                    eager.append((model, error))
                else:
                    log.warning("the delta is given up: %s", error)
                    self._deltas[model].end()
            else:
                if fetcher.hungry:
                    eager.append((model, None))
        return eager

    def progress(self, model: str) -> tuple[float, int] | None:
        """Fraction and bytes, when another tenth has come since the last time."""
        fetcher = self._fetchers.get(model)
        if fetcher is None or fetcher.done or fetcher.fraction - self._told[model] < _PROGRESS_STEP:
            return None
        self._told[model] = fetcher.fraction
        return round(fetcher.fraction, 3), fetcher.progress.bytes

    def stop(self, model: str) -> int:
        """End the model's fetch and keep what it has on disk; the bytes that it fetched."""
        fetcher = self._fetchers.pop(model, None)
        if fetcher is None:
            return 0
        self._end_delta(model)
        self._listen(fetcher.build, False)
        self._offers.pop(model, None)
        fetcher.close()
        return fetcher.progress.bytes + self._delta_bytes.pop(model, 0)

    def stop_all(self) -> None:
        for model in list(self._fetchers):
            self.stop(model)

    def on_disk(self, build: str) -> int:
        """Bytes that the build's fetch holds on disk already."""
        return sum(path.stat().st_blocks * 512 for path in self.folder(build).glob("*"))

    def drop(self, build: str) -> None:
        fetch.drop(self.folder(build))

    def sweep(self, keep: Collection[str]) -> None:
        """Remove what was fetched of builds that nobody wants any longer."""
        for folder in self._folder.glob("*"):
            if folder.name not in keep:
                fetch.drop(folder)
