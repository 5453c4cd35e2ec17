"""The server's job queue as the build worker sees it: the client's calls, tried again for as long as the server is away.

A server that restarts is no error. A lease that it no longer knows is `LeaseLostError`: another worker has the job.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from covey_client.api import Client
from covey_client.errors import ApiError, BadAnswer, ClientError, Unreachable, Untrusted
from covey_contract.building import BuildJob, BuildReport, LeaseRequest, SourceFile
from covey_contract.manifest import FileEntry
from covey_converters.errors import ServerError

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
# What a busy or restarting server says, besides 5xx.
_AGAIN = {408, 425, 429}

T = TypeVar("T")


class LeaseLostError(ServerError):
    """The lease ran out; another worker has the job."""


class StoppedError(ServerError):
    """The worker was told to stop."""


@dataclass(frozen=True)
class Jobs:
    """`client` has the worker's token; `stop` ends every wait."""

    client: Client
    stop: threading.Event
    say: Callable[[str], None]

    def lease(self, request: LeaseRequest) -> BuildJob | None:
        """The next job for these targets, or None if there is none."""
        return self._retried(lambda: self.client.lease(request))

    def renew(self, job: BuildJob, seconds: int) -> bool:
        """Once: the caller comes back before the lease ends. False if the server was away; raises `LeaseLostError`."""
        try:
            self.client.renew(job.id, job.lease, seconds)
        except (Unreachable, Untrusted):
            return False
        except ApiError as error:
            if error.status in {404, 409, 410}:
                raise LeaseLostError(f"the lease of job {job.id} is lost: {error}") from error
            return False
        return True

    def download(self, file: SourceFile, out: Path) -> None:
        """To `out`, complete and verified, or not at all."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            self._retried(lambda: self.client.download_blob(file.sha256, out, limit=file.size))

    def upload(self, job: BuildJob, entry: FileEntry, path: Path) -> None:
        self._retried(lambda: self.client.upload_file(job.id, job.lease, entry.sha256, path))

    def finish(self, job: BuildJob, report: BuildReport, manifest: bytes | None) -> None:
        self._retried(lambda: self.client.finish(job.id, job.lease, report, manifest))

    def _retried(self, call: Callable[[], T]) -> T:
        wait = _FIRST_WAIT_S
        while True:
            try:
                return call()
            except Unreachable as error:
                trouble: ClientError = error
            except ApiError as error:
                if error.status < 500 and error.status not in _AGAIN:
                    kind = LeaseLostError if error.status in {409, 410} else ServerError
                    raise kind(f"the server refuses: {error}") from error
                trouble = error
            except BadAnswer as error:
                raise ServerError(str(error)) from error
            self.say(f"{trouble}; trying again in {wait:g} s")
            if self.stop.wait(wait):
                raise StoppedError
            wait = min(wait * 2, _LONGEST_WAIT_S)
