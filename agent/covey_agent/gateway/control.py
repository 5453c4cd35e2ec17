"""The control process's door: one JSON request a line on `gateway.sock`, one JSON answer a line (see `control_api`).

Each connection is served in order; a connection that goes away does not stop what it ordered.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from covey_agent.gateway.activity import Activity
from covey_agent.gateway.control_api import (
    MAX_LINE_BYTES,
    Answer,
    Collect,
    Collected,
    Done,
    Failure,
    GatewayStatus,
    GetStatus,
    Load,
    Request,
    Revert,
    Settle,
    Shutdown,
    Switch,
    Unload,
)
from covey_agent.gateway.errors import OrderError
from covey_agent.gateway.locks import Locks
from covey_agent.gateway.models import Models
from covey_contract.reasons import Reason

if TYPE_CHECKING:
    from covey_agent.gateway.capture import Capture

log = logging.getLogger(__name__)

PAGE = os.sysconf("SC_PAGE_SIZE")

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


class ControlServer:
    """`stop` ends the gateway; `http_port` is known once the gateway listens."""

    def __init__(
        self,
        models: Models,
        *,
        activity: Activity,
        locks: Locks,
        started_ms: int,
        http_port: int,
        stop: Callable[[], None],
        max_connections: int,
        capture: Capture | None = None,
    ) -> None:
        self._models = models
        self._activity = activity
        self._locks = locks
        self._started_ms = started_ms
        self._http_port = http_port
        self._stop = stop
        self._max_connections = max_connections
        self._capture = capture
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its end."""
        self._connections += 1
        try:
            if self._connections <= self._max_connections:
                await self._talk(reader, writer)
        except ConnectionError:
            pass  # the control process died or did not wait for its answer
        except asyncio.CancelledError:
            pass  # the gateway ends; asyncio's stream server would log it as an error
        finally:
            self._connections -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than MAX_LINE_BYTES: where the next request begins is anybody's guess
                writer.write(
                    _line(Failure(reason=Reason.BAD_MESSAGE, detail=f"a line is at most {MAX_LINE_BYTES} bytes"))
                )
                await writer.drain()
                return
            if not line.endswith(b"\n"):
                return
            writer.write(_line(await self.answer(line)))
            await writer.drain()

    async def answer(self, line: bytes) -> Answer:
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Failure(reason=Reason.BAD_MESSAGE, detail=str(error))
        try:
            return await self._obey(request)
        except OrderError as error:
            return Failure(reason=error.reason, detail=str(error))
        except Exception as error:  # one bad order must not close the door to the next
            log.exception("the order %s failed", type(request).__name__)
            return Failure(reason=Reason.INTERNAL, detail=f"{type(error).__name__}: {error}")

    async def _obey(self, request: Request) -> Answer:
        models = self._models
        match request:
            case Load():
                # Shielded: control may restart while a build loads, and asks again.
                return await asyncio.shield(asyncio.ensure_future(models.load(request)))
            case Switch():
                models.known(request.model).switch(request.build, request.probation)
            case Settle():
                models.known(request.model).settle()
            case Revert():
                models.known(request.model).revert(request.reason, request.detail)
            case Unload():
                if (model := models.get(request.model)) is not None:
                    model.unload(request.build)
            case GetStatus():
                return self._status()
            case Collect():
                return self._collect()
            case Shutdown():
                self._stop()
        return Done()

    def _status(self) -> GatewayStatus:
        return GatewayStatus(
            pid=os.getpid(),
            started_ms=self._started_ms,
            http_port=self._http_port,
            models=tuple(model.status() for model in self._models.all()),
            idle_s=self._activity.idle_s,
            locked_by=tuple(lock.owner for lock in self._locks.held()),
        )

    def _collect(self) -> Collected:
        start_ms, end_ms, windows = self._models.collect()
        return Collected(
            start_ms=start_ms,
            end_ms=end_ms,
            windows=windows,
            gateway_rss_mb=_own_rss_mb(),
            runners_rss_mb=sum(model.runners_rss_mb() for model in self._models.all()),
            capture=self._capture.told() if self._capture is not None else None,
        )


def _line(answer: Answer) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


def _own_rss_mb() -> float:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * PAGE / 1e6
