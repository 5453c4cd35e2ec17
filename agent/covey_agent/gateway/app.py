"""The gateway's composition root: one process, two doors for applications (TCP and a Unix socket), one for control.

It belongs to nobody's session and ignores SIGHUP: it goes on serving when its control process dies. One gateway has a run folder
at a time (`gateway.pid` is locked); sockets that a dead one left are replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from covey_agent.gateway.activity import Activity
from covey_agent.gateway.control import ControlServer
from covey_agent.gateway.control_api import MAX_LINE_BYTES
from covey_agent.gateway.http_protocol import Connections
from covey_agent.gateway.inference import refuse
from covey_agent.gateway.locks import LOCK_FILE, Locks
from covey_agent.gateway.models import Models, system_ms
from covey_agent.gateway.routes import Routes
from covey_agent.gateway.settings import Settings
from covey_agent.gateway.shared_memory import SharedMemory
from covey_agent.runner.priority import idle_command

if TYPE_CHECKING:
    from covey_agent.gateway.capture import Capture

log = logging.getLogger(__name__)

CONTROL_SOCKET = "gateway.sock"
INFERENCE_SOCKET = "inference.sock"
PID_FILE = "gateway.pid"
# Of a Unix socket's path, as the kernel allows it.
MAX_SOCKET_PATH = 107
DRAIN_S = 5.0
BACKLOG = 128


class StartError(Exception):
    """The gateway cannot start; the text is one line for people."""


async def serve(settings: Settings) -> None:
    """Until SIGTERM, SIGINT or a `Shutdown`; raises `StartError`."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _own(settings.run_dir), contextlib.ExitStack() as held:
        tcp = held.enter_context(_listen_tcp(settings.host, settings.port))
        inference = held.enter_context(_listen_unix(settings.socket or settings.run_dir / INFERENCE_SOCKET, 0o666))
        orders = held.enter_context(_listen_unix(settings.run_dir / CONTROL_SOCKET, 0o600))
        await _serve_on(settings, tcp, inference, orders, stop)


async def _serve_on(
    settings: Settings, tcp: socket.socket, inference: socket.socket, orders: socket.socket, stop: asyncio.Event
) -> None:
    loop, limits = asyncio.get_running_loop(), settings.limits
    models = Models(settings, loop.time, idle=idle_command())
    activity = Activity(loop.time)
    locks = Locks(settings.run_dir / LOCK_FILE, system_ms)
    locks.load()
    memory = SharedMemory(limits.buffered_bytes)
    capture = _capturing(settings)
    routes = Routes(models, limits, loop.time, activity=activity, locks=locks, memory=memory, capture=capture)
    connections = Connections(routes.handle, refuse, limits, loop.time, routes.quick)
    port = tcp.getsockname()[1]
    control = ControlServer(
        models,
        activity=activity,
        locks=locks,
        started_ms=system_ms(),
        http_port=port,
        stop=lambda: _after_the_answer(loop, stop),
        max_connections=limits.control_connections,
        capture=capture,
    )
    servers = [
        await loop.create_server(connections.accept, sock=tcp, backlog=BACKLOG),
        await loop.create_unix_server(connections.accept, sock=inference, backlog=BACKLOG),
        await asyncio.start_unix_server(control.serve, sock=orders, limit=MAX_LINE_BYTES),
    ]
    sweeper = asyncio.create_task(connections.sweep())
    # What was imported stays; the collector need not walk it while requests wait.
    gc.collect()
    gc.freeze()
    log.info("serving on %s:%d and in %s", settings.host, port, settings.run_dir)
    await stop.wait()
    log.info("ending")
    for server in servers:
        server.close()
    await connections.drain(DRAIN_S)
    await models.close(DRAIN_S)
    if capture is not None:
        capture.stop()
    sweeper.cancel()


def _capturing(settings: Settings) -> Capture | None:
    """None where it is off. Imported only where it is on: what writes files takes memory."""
    if settings.capture is None:
        return None
    import random

    from covey_agent.gateway.capture import started

    return started(settings.capture, random.random, system_ms)


def _after_the_answer(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.call_later(0.05, stop.set)


@contextlib.contextmanager
def _own(run_dir: Path) -> Iterator[None]:
    """Hold the run folder by a lock on the file with our process id; raises `StartError` if another gateway has it."""
    path = run_dir / PID_FILE
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StartError(f"the run folder {run_dir} is not usable: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise StartError(f"a gateway already serves {run_dir} (process {pid or 'unknown'})") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # on a full disk it serves all the same
            log.warning("the process id could not be noted: %s", error)
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listen_unix(path: Path, mode: int) -> Iterator[socket.socket]:
    """A listening socket at `path`, which only this process may be using: whatever lies there is stale."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise StartError(
            f"the path of the socket {path} is longer than {MAX_SOCKET_PATH} bytes; choose a shorter run folder"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        before = os.umask(0o777 & ~mode)
        try:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
        except OSError as error:
            raise StartError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(before)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _listen_tcp(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield sock
