"""The job endpoints of the server's API, as the build worker uses them.

Every answer is checked: sizes and digests of what is downloaded, decoded messages, problem documents turned into one line.
A server that is away or restarting is not an error: calls are retried with back-off until they succeed or the worker is
stopped.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
from covey_contract.building import BuildJob, BuildReport, LeaseRequest, SourceFile
from covey_contract.errors import ContractError
from covey_contract.manifest import FileEntry
from covey_contract.wire import decode, encode

from covey_converters.errors import ServerError

_API = "/api/v1"
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_CHUNK = 1 << 20

T = TypeVar("T")


class LeaseLostError(ServerError):
    """The lease ran out; another worker has the job."""


class StoppedError(ServerError):
    """The worker was told to stop."""


@dataclass(frozen=True)
class Jobs:
    """`client` has the server's base URL and the worker's token; `stop` ends every wait."""

    client: httpx.Client
    stop: threading.Event
    say: Callable[[str], None]

    def lease(self, request: LeaseRequest) -> BuildJob | None:
        """The next job for these targets, or None if there is none."""
        answer = self._retried(lambda: self._send("POST", "/jobs/lease", content=encode(request)))
        if answer.status_code == 204:
            return None
        try:
            return decode(BuildJob, answer.content)
        except ContractError as error:
            raise ServerError(f"the server's answer is no build job: {error}") from error

    def renew(self, job: BuildJob, seconds: int) -> None:
        """Once, without retrying: the caller comes back before the lease ends. Raises `LeaseLostError`."""
        body = msgspec.json.encode({"lease": job.lease, "seconds": seconds})
        self._send("POST", f"/jobs/{job.id}/renew", content=body)

    def download(self, file: SourceFile, out: Path) -> None:
        """To `out`, complete and verified, or not at all."""
        if out.exists():
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f"{out.name}.partial")
        self._retried(lambda: self._fetch(file, partial))
        partial.replace(out)

    def upload(self, job: BuildJob, entry: FileEntry, path: Path) -> None:
        def send() -> httpx.Response:
            return self._send(
                "PUT",
                f"/jobs/{job.id}/files/{entry.sha256}",
                params={"lease": job.lease},
                content=_chunks(path),
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(entry.size)},
            )

        self._retried(send)

    def finish(self, job: BuildJob, report: BuildReport, manifest: bytes | None) -> None:
        body = {
            "lease": job.lease,
            "report": msgspec.to_builtins(report),
            "manifest": None if manifest is None else base64.b64encode(manifest).decode(),
        }
        self._retried(lambda: self._send("POST", f"/jobs/{job.id}/finish", content=msgspec.json.encode(body)))

    def _fetch(self, file: SourceFile, partial: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with self.client.stream("GET", f"{_API}/blobs/{file.sha256}") as answer, partial.open("wb") as out:
            if answer.status_code >= 400:
                answer.read()
                _refuse(answer)
            for chunk in answer.iter_bytes(_CHUNK):
                size += len(chunk)
                if size > file.size:
                    raise ServerError(f"{file.filename}: the server sends more than the {file.size} bytes it announced")
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise httpx.ReadError(f"{file.filename} arrived damaged")

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterator[bytes],
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        wanted = {"Content-Type": "application/json", **(headers or {})}
        answer = self.client.request(method, f"{_API}{path}", content=content, params=params, headers=wanted)
        if answer.status_code >= 400:
            _refuse(answer)
        return answer

    def _retried(self, call: Callable[[], T]) -> T:
        wait = _FIRST_WAIT_S
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                self.say(f"the server does not answer ({type(error).__name__}); trying again in {wait:g} s")
            if self.stop.wait(wait):
                raise StoppedError
            wait = min(wait * 2, _LONGEST_WAIT_S)


def _refuse(answer: httpx.Response) -> None:
    """Raise what a refusal means: our fault, a lost lease, or a server that is not well and may be asked again."""
    line = _problem(answer)
    if answer.status_code >= 500 or answer.status_code == 429:
        raise httpx.HTTPStatusError(line, request=answer.request, response=answer)
    path = answer.request.url.path
    if answer.status_code in {404, 409, 410} and "/jobs/" in path and not path.endswith("/lease"):
        raise LeaseLostError(f"the lease was lost: {line}")
    raise ServerError(f"the server refuses {answer.request.method} {answer.request.url.path}: {line}")


def _problem(answer: httpx.Response) -> str:
    """One line of a problem document (RFC 9457), or of whatever came instead."""
    with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        document = msgspec.json.decode(answer.content, type=dict[str, object])
        text = document.get("detail") or document.get("title")
        if isinstance(text, str):
            return f"{answer.status_code} {' '.join(text.split())[:300]}"
    return f"{answer.status_code} {answer.reason_phrase}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
