"""One runner as the gateway sees it: a child process at the other end of a socket, with at most one inference in flight.

Whatever ends a runner (crash, kill, hang, garbage on its socket) is told once, by `on_lost`, before the caller that waits for
its answer hears of it. A runner that was retired is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from covey_agent.gateway.alarm import Alarm
from covey_agent.gateway.control_api import Loaded
from covey_agent.gateway.enclosure import Enclosure
from covey_agent.gateway.errors import OrderError
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.probation import Failing
from covey_agent.runner.arena import SHARED_FROM, Arena
from covey_agent.runner.protocol import (
    Error,
    Failed,
    FrameBuffer,
    FrameError,
    FromRunner,
    Infer,
    Ready,
    Result,
    SharedInfer,
    Start,
    encode_frame,
    from_runner,
)
from covey_contract.manifest import Manifest
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

SOCKET_BUFFER = 1 << 20
RECEIVE_BYTES = 128 * 1024
# After the socket of a dying process closes, its exit code follows within a moment.
EXIT_CODE_POLLS = 25
EXIT_CODE_POLL_S = 0.002
REAP_S = 0.05
# How often memory that large requests took, and that later ones did not, is given back.
TRIM_S = 5.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class BuildSpec:
    """A verified build on disk."""

    build: str
    folder: Path
    manifest: Manifest


class InferFailed(Exception):  # noqa: N818  # the word of its class in `Failing`
    """The runner gave no answer that can be passed on."""

    def __init__(self, how: Failing, detail: str) -> None:
        super().__init__(detail)
        self.how = how


class Reply(NamedTuple):
    """The answer of a runner; `payload` holds the outputs' bytes one after the other."""

    result: Result
    payload: bytes


Replied = Callable[[Reply | InferFailed], None]


class RunnerProcess(asyncio.BufferedProtocol):
    """`on_free`: it may take the next inference. `on_lost(runner, how, detail)`: it is gone. Neither is called while loading."""

    def __init__(
        self,
        spec: BuildSpec,
        *,
        threads: int,
        enclosure: Enclosure,
        idle: Sequence[str],
        retire_s: float,
        on_free: Callable[[], None],
        on_lost: Callable[[RunnerProcess, Failing, str], None],
    ) -> None:
        self.spec = spec
        self.busy = False
        self.stuck = False  # in flight for longer than its caller had patience
        self.loaded: Loaded | None = None  # None until it is ready
        self.gone = False
        self.draining = False
        self._quietly = False
        self.pid = 0
        self.ended = asyncio.Event()
        self._threads = threads
        self._enclosure = enclosure
        self._idle = tuple(idle)
        self._retire_s = retire_s
        self._on_free = on_free
        self._on_lost = on_lost
        self._frames: FrameBuffer[FromRunner] = FrameBuffer(from_runner)
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._number = 0
        self._asked = False  # the inference of that number is in flight
        self._replied: Replied | None = None  # who waits for it
        self._late_at = self._hung_at = self._hang_s = 0.0
        self._alarm = Alarm(self._overdue)
        self._loop: asyncio.AbstractEventLoop
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._starting: asyncio.Future[Ready] | None = None
        self._arena: Arena | None = None
        self._trimming: asyncio.TimerHandle | None = None
        self._usual = SharedInfer((), ())

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self, *, background: bool, check_golden: bool, timeout_s: float) -> Loaded:
        """Start the process and wait until its build is ready; raises `OrderError` with the reason if it does not get there."""
        loop = self._loop = asyncio.get_running_loop()
        self._starting = loop.create_future()
        try:
            await self._spawn(loop, background=background)
            if self.draining:  # retired meanwhile
                self._close()
            self._write(encode_frame(Start(background, check_golden, self._threads)))
            ready = await asyncio.wait_for(self._starting, timeout_s)
        except asyncio.TimeoutError as error:
            self.kill()
            raise OrderError(Reason.LOAD_TIMEOUT, f"the build was not ready within {timeout_s:g} s") from error
        except OSError as error:
            self.kill()
            self._reap(0)
            raise OrderError(Reason.LOAD_FAILED, f"the runner cannot be started: {error}") from error
        if self.gone:
            raise OrderError(Reason.LOAD_FAILED, "the runner died as soon as it was ready")
        if background:
            self._enclosure.serve(self.pid, self.spec.manifest.model)
        self.loaded = Loaded(load_ms=ready.load_ms, first_ms=ready.first_ms, rss_mb=self.rss_mb())
        return self.loaded

    async def _spawn(self, loop: asyncio.AbstractEventLoop, *, background: bool) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            ours.setblocking(False)
            threads = str(self._threads)
            self._arena = Arena.made()
            shared = [self._arena.descriptor] if self._arena is not None else []
            manner = "background" if background else "serving"
            words = [str(theirs.fileno()), str(self.spec.folder), manner, *map(str, shared)]
            before = self._idle if background else ()
            try:
                self._process = subprocess.Popen(  # noqa: ASYNC220  # vfork and exec: about a millisecond
                    [*before, sys.executable, "-m", "covey_agent.runner", *words],
                    cwd="/",  # `-m` looks for modules there first
                    pass_fds=[theirs.fileno(), *shared],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
                )
            except OSError:
                ours.close()
                self._forget_arena()
                self.ended.set()
                raise
        self.pid = self._process.pid
        self._enclosure.enclose(self.pid, self.spec.manifest.model, background=background)
        await loop.create_unix_connection(lambda: self, sock=ours)

    def retire(self, *, quietly: bool = False) -> None:
        """Let it finish what it has, then end it. It takes no more inferences. `quietly`: giving back its memory, which takes the kernel
        milliseconds of the runner's own time, may wait for what serves."""
        self.draining = True
        self._quietly = quietly
        if self.busy and not self.stuck:
            return  # ends when it has answered
        self._close()

    def kill(self) -> None:
        """End it now."""
        self.draining = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        if self._quietly and self.pid and not self.gone:
            self._enclosure.quiet(self.pid)
            with contextlib.suppress(OSError):  # it has ended by itself, or the kernel knows no idle priority
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
        if self._transport is not None:
            self._transport.abort()

    def rss_mb(self) -> float:
        """Resident memory in MB; 0 if it is gone."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * PAGE / 1e6

    @property
    def ready(self) -> bool:
        return self.loaded is not None and not self.gone and not self.draining

    @property
    def state(self) -> str:
        if self.draining or self.gone:
            return "draining"
        return "loading" if self.loaded is None else "ready"

    # --- inferences -------------------------------------------------------------------------------------------------

    def ask(self, request: InferRequest, replied: Replied, now: float, *, patience_s: float, hang_s: float) -> None:
        """Have `replied` called with the build's answer, or with why there is none; once, and not from within this call.

        `now`: of the loop's clock. After `patience_s` the caller goes on without it (LATE), but the runner stays `busy`, and `stuck`, until it has
        answered after all. After `hang_s` it counts as hung and is killed. The caller has set `busy`.
        """
        if self.gone:
            self._loop.call_soon(replied, InferFailed(Failing.CRASHED, "the runner died before it was asked"))
            return
        self._number += 1
        self._asked, self._replied, self._hang_s = True, replied, hang_s
        self._late_at, self._hung_at = now + patience_s, now + hang_s
        self._alarm.set(self._loop, min(self._late_at, self._hung_at))
        self._write(self._frame(request))

    def room(self, size: int) -> memoryview | None:
        """Where the inputs of the request that it is asked next, `size` bytes, may be read to; None if they are to come by themselves."""
        if self._arena is None or size < SHARED_FROM:
            return None
        try:
            return self._arena.room(size)
        except OSError:
            return None

    def _frame(self, request: InferRequest) -> bytes:
        """The request, with its inputs where they are read the quickest."""
        if self._arena is not None and sum(map(len, request.data)) >= SHARED_FROM:
            try:
                self._arena.lay(request.data)
            except OSError:  # no memory for it; the runner may yet have some
                log.debug("no shared memory for a request")
            else:
                usual = self._usual
                if usual.inputs is not request.inputs or usual.outputs is not request.outputs:
                    usual = self._usual = SharedInfer(request.inputs, request.outputs)
                return usual.numbered(self._number)
        return encode_frame(Infer(self._number, request.inputs, request.outputs), request.data)

    def _forget_arena(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def _tell(self, outcome: Reply | InferFailed) -> None:
        replied, self._replied = self._replied, None
        if replied is not None:
            replied(outcome)

    def _overdue(self) -> None:
        if not self._asked:
            return
        now = self._loop.time()
        if now >= self._hung_at:
            self._lose(Failing.HUNG, f"no answer within {self._hang_s:.1f} s")
            self.kill()
        elif now < self._late_at:
            self._alarm.set(self._loop, min(self._late_at, self._hung_at))
        else:
            self._alarm.set(self._loop, self._hung_at)
            self.stuck = True
            self._on_free()  # others need not wait for it
            self._tell(InferFailed(Failing.LATE, "the model did not answer in the time there was"))

    # --- the socket -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # create_unix_connection makes no other
        self._transport = transport

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # as much as there is
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message, payload in self._frames.feed(self._received[:nbytes]):
                self._take(message, payload)
        except FrameError as error:
            self._lose(Failing.CRASHED, str(error))
            self.kill()

    def _take(self, message: FromRunner, payload: bytes) -> None:
        if isinstance(message, Ready | Failed):
            if self._starting is not None and not self._starting.done():
                if isinstance(message, Ready):
                    self._starting.set_result(message)
                else:
                    self._starting.set_exception(OrderError(message.reason, message.detail))
            return
        if not self._asked or message.id != self._number:
            raise FrameError("the runner answered what it was not asked")
        self._asked = False
        self.busy = self.stuck = False
        if self.draining:
            self._close()
        else:
            self._on_free()
        if isinstance(message, Result):
            self._tell(Reply(message, payload))
        elif isinstance(message, Error):
            self._tell(InferFailed(Failing(message.kind.value), message.detail))
        if self._trimming is None and self._arena is not None and self._arena.is_large:
            self._trimming = self._loop.call_later(TRIM_S, self._trim, self._arena)

    def _trim(self, arena: Arena) -> None:
        if not self._asked:
            arena.trim()
        self._trimming = self._loop.call_later(TRIM_S, self._trim, arena) if arena.is_large else None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the exit code says more
        asyncio.get_running_loop().call_soon(self._learn_exit, EXIT_CODE_POLLS)

    def _learn_exit(self, polls: int) -> None:
        process = self._process
        if polls and process is not None and process.poll() is None and not self.draining:
            asyncio.get_running_loop().call_later(EXIT_CODE_POLL_S, self._learn_exit, polls - 1)
            return
        self._lose(Failing.CRASHED, self._last_words())
        self._reap(self._retire_s)

    def _last_words(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "the runner closed its socket"
        if code < 0:
            return f"the runner was ended by {_signal_name(-code)}"
        return f"the runner ended with exit code {code}"

    def _lose(self, how: Failing, detail: str) -> None:
        if self.gone:
            return
        self.gone = True
        self.busy = False
        if self._starting is not None and not self._starting.done():
            reason = Reason.SUPERSEDED if self.draining else Reason.LOAD_FAILED
            self._starting.set_exception(OrderError(reason, f"while the build was loading: {detail}"))
        elif self.loaded is not None and not self.draining:
            log.warning("runner %d of build %s: %s", self.pid, self.spec.build[:12], detail)
            self._on_lost(self, how, detail)
        self._asked = False
        self._alarm.stop()
        self._tell(InferFailed(how, detail))
        # Whoever still knows this runner keeps no memory by it. Little garbage is made here, so that the collector seldom comes.
        self._received = memoryview(b"")
        self._replied, self._usual = None, SharedInfer((), ())

    def _reap(self, grace_s: float) -> None:
        """Wait for the process without holding anything up; kill it when it has had its time."""
        if self._process is None or self._process.poll() is not None:
            self._enclosure.release(self.pid)
            self._forget_arena()
            self.ended.set()
            return
        if grace_s <= 0:
            self._process.kill()
        asyncio.get_running_loop().call_later(REAP_S, self._reap, grace_s - REAP_S)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
