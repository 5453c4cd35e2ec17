"""Large files to the server in pieces (tus 1.0), so that a connection or a server that ends costs what was under way, not what has come.

The server knows by the file's SHA-256 what was begun before: the same push again, also by another process, goes on where the last one ended.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from covey_client.errors import ApiError, BadAnswer, ClientError, Unreachable
from covey_client.transport import Progress, Transport

PATH = "/api/v1/uploads"
# Smaller files go with the push itself.
FROM_BYTES = 16 << 20
PIECE_BYTES = 64 << 20  # proxies bound the length of one request
_CHUNK = 1 << 18
_TUS = {"Tus-Resumable": "1.0.0"}
_BUSY = frozenset({409, 429, 502, 503, 504})


class Uploader:
    """`patience_s`: how long without a single byte more before it is given up."""

    def __init__(
        self, api: Transport, *, patience_s: float = 300.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._api = api
        self._patience_s = patience_s
        self._sleep = sleep

    def send(self, path: Path, progress: Progress | None = None) -> str | None:
        """The upload's id; None: this server takes no uploads in pieces. Raises `ClientError`, `OSError`."""
        size = path.stat().st_size
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": _said(path.name, sha256)}
            try:
                begun = self._api.headers("POST", PATH, headers=headers)
            except ApiError as error:
                if error.status in (404, 405):
                    return None
                raise
            upload = begun.get("location", "").rpartition("/")[2]
            if not upload:
                raise BadAnswer(f"{self._api.url} named no upload")
            self._fill(f"{PATH}/{upload}", file, _offset(begun), size, progress)
        return upload

    def _fill(self, where: str, file: BinaryIO, offset: int, size: int, progress: Progress | None) -> None:
        """Send what is missing, for as long as it gets on."""
        since, wait_s = time.monotonic(), 0.5
        while offset < size:
            try:
                offset, reached = self._piece(where, file, offset, size, progress), offset
            except (Unreachable, ApiError) as error:
                if isinstance(error, ApiError) and error.status not in _BUSY:
                    raise
                if time.monotonic() - since > self._patience_s:
                    raise ClientError(f"the upload got no further than {offset} of {size} bytes: {error}") from error
                self._sleep(wait_s)
                wait_s = min(30.0, wait_s * 2)
                reached, offset = offset, self._asked(where, offset)
            if offset > reached:
                since, wait_s = time.monotonic(), 0.5

    def _piece(self, where: str, file: BinaryIO, offset: int, size: int, progress: Progress | None) -> int:
        """Where it stands afterwards."""
        length = min(PIECE_BYTES, size - offset)

        def chunks() -> Iterator[bytes]:
            file.seek(offset)
            sent = 0
            while sent < length and (data := file.read(min(_CHUNK, length - sent))):
                yield data
                sent += len(data)
                if progress is not None:
                    progress(offset + sent)

        headers = {
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
            "Upload-Offset": str(offset),
        }
        return _offset(self._api.headers("PATCH", where, headers=headers, content=chunks()))

    def _asked(self, where: str, known: int) -> int:
        """Where the server says that it stands; what was known, if it does not answer now."""
        try:
            return _offset(self._api.headers("HEAD", where, headers=_TUS))
        except Unreachable:
            return known
        except ApiError as error:
            if error.status in _BUSY:
                return known
            raise


def _offset(headers: Mapping[str, str]) -> int:
    text = headers.get("upload-offset", "")
    if not (text.isascii() and text.isdigit()):
        raise BadAnswer("the server did not say how far the upload has come")
    return int(text)


def _said(filename: str, sha256: str) -> str:
    """`Upload-Metadata`: keys, and values in base64."""
    told = {"filename": filename, "sha256": sha256}
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())
