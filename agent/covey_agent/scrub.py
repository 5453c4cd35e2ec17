"""Reading what lies on disk before it is needed: every file of the builds in the slots, one after the other, again and again.

A file that has changed is removed, so that it is fetched again while the runner that has it in memory goes on serving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from covey_agent.jobs import Finished, Jobs, Key
from covey_agent.store import CorruptError, Store
from covey_contract.manifest import FileEntry

SCRUB = "scrub"


class Scrub:
    """Driven by the control loop. One file a job, so that whatever else waits for a job waits for one file at most."""

    def __init__(self, store: Store, jobs: Jobs, every_s: float) -> None:
        self._store = store
        self._jobs = jobs
        self._every_s = every_s
        self._next: float | None = None
        self._files: deque[tuple[str, FileEntry]] = deque()

    def tick(self, now: float, builds: Callable[[], Iterable[str]]) -> None:
        """Go on with the round, or begin one. `builds` are those in the slots, by digest."""
        if self._next is None:
            self._next = now + self._every_s  # at the start they are read anyway
        if not self._files and now >= self._next:
            self._next = now + self._every_s
            for build in builds():
                manifest = self._store.manifest(build)
                self._files.extend((build, entry) for entry in (manifest.files if manifest is not None else ()))
        if self._files and not self._jobs.is_pending(self._key(self._files[0][0])):
            build, entry = self._files[0]
            self._jobs.submit(self._key(build), lambda: self._store.scrub(entry))

    def finished(self, finished: Finished) -> str | None:
        """A file has been read. The build that it belongs to, if it is damaged."""
        if self._files and self._files[0][0] == finished.key.build:
            self._files.popleft()
        return finished.key.build if isinstance(finished.trouble, CorruptError) else None

    @staticmethod
    def _key(build: str) -> Key:
        # Of no model: nothing that is done for one waits until this is over.
        return Key("", SCRUB, build)
