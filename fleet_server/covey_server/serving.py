"""A server process from its first check to its last: one server to a folder, one to a port, one clear line if not.

Invariants: `server.json` is there exactly while the API answers (a kill leaves it; its `pid` tells); the lock on the data folder
is held from before the first read to after the last write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import uvicorn

from covey_server import logs
from covey_server.app import WORKER_TOKEN_FILE, build_services, create_app, local_targets, running
from covey_server.errors import EXIT_IN_USE, StartError
from covey_server.fleet.broker import broker_hosts
from covey_server.fleet.durable import write_durably
from covey_server.peer_certificate import PeerCertificateProtocol
from covey_server.registry.worker_child import WorkerChild, find_worker
from covey_server.services import Services
from covey_server.settings import Settings

log = logging.getLogger(__name__)

SERVER_FILE = "server.json"
LOCK_FILE = "lock"
_BACKLOG = 512
_GRACE_S = 3
# Each short wait of a thread (a signature, a socket, the database) gives the interpreter away, and comes back only when the thread that
# has it meanwhile is made to stop, after this long. By default that is 5 ms, which ten thousand orders wait for one after the other.
_SWITCH_S = 0.0005


def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises `StartError`. `environment` is handed on to the build worker."""
    sys.setswitchinterval(_SWITCH_S)
    signals = _Signals()
    signals.install()
    with _folder_lock(settings.data), _listening(settings) as listener:
        services = build_services(settings)
        if services.tracing.on:
            logs.configure(settings, services.tracing.current)
        app = create_app(services)
        url = _url(settings, settings.reachable_host, listener)
        worker = _worker(settings, _url(settings, _own_host(settings), listener), environment)
        with running(services), contextlib.ExitStack() as until_end:

            def announce() -> None:
                _write_server_file(services, url)
                until_end.callback((settings.data / SERVER_FILE).unlink, missing_ok=True)
                if worker is not None:
                    worker.start()
                    until_end.callback(worker.stop)
                if settings.wildcard and not settings.public_host:
                    words = (
                        "devices are told to find this server at %s; set public_host if they know it by another name"
                    )
                    log.warning(words, settings.reachable_host)
                log.info("listening on %s (data in %s)", url, settings.data)

            def farewell() -> None:
                # A page that is open holds a stream that has no end of its own; uvicorn would wait for it.
                hub = getattr(app.state, "console_hub", None)
                if hub is not None:
                    hub.close()

            server = _Server(_uvicorn_config(app, settings, services), announce, farewell)
            signals.left_to_server = True
            server.run(sockets=[listener])
            log.info("ending")


class _Signals:
    """SIGTERM ends a start that is under way by unwinding it; once uvicorn serves, it sees to signals itself and raises them
    again when it has ended, which must not kill us before everything else is stopped."""

    def __init__(self) -> None:
        self.left_to_server = False

    def install(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._received)

    def _received(self, _signum: int, _frame: object) -> None:
        if not self.left_to_server:
            raise SystemExit(0)


class _Server(uvicorn.Server):
    """Says when it answers, and when it is about to wait for its open connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], farewell: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self._farewell = farewell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._farewell()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _folder_lock(data: Path) -> Iterator[None]:
    """Hold the data folder, made if it is not there."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise StartError(f"the data folder {data} cannot be used: {reason}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StartError(
                f"another server runs on the data folder {data} (process {holder})", EXIT_IN_USE
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket; taken first, so that a port in use costs nothing but a line."""
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise StartError(f"setting listen: {host!r} is no address of this machine ({error.strerror})") from error
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. asyncio would set it on sockets that it makes itself; without, an answer's body waits 40 ms for the
        # acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"port {port} on {host} is in use by another program", EXIT_IN_USE) from error
            raise StartError(f"setting listen: cannot listen on {settings.listen}: {error.strerror}") from error
        yield listener


def _uvicorn_config(app: Callable[..., object], settings: Settings, services: Services) -> uvicorn.Config:
    """HTTPS with a certificate of the fleet's own CA, unless only this machine can reach us."""
    certificate = key = authority = None
    if not settings.loopback and services.fleet is not None:
        # The broker's own list of names, since both use the same certificate.
        hosts = broker_hosts(settings.reachable_host, settings.broker_interface, settings.host)
        pair = services.fleet.ca.server_certificate(hosts, services.clock())
        certificate, key, authority = pair.certificate, pair.key, str(services.fleet.trusted_clients)
    return uvicorn.Config(
        app,
        lifespan="off",  # `running` is entered here, so that a failure is a line and not a traceback
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        # Devices may show their certificate, and need to for two things alone: to have it renewed, or to enrol by a factory's.
        ssl_ca_certs=authority,
        ssl_cert_reqs=ssl.CERT_NONE if authority is None else ssl.CERT_OPTIONAL,
        http=PeerCertificateProtocol,
    )


def _url(settings: Settings, host: str, listener: socket.socket) -> str:
    scheme = "http" if settings.loopback else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _own_host(settings: Settings) -> str:
    """By which this machine reaches its own server whatever name service there is; the certificate is for it too."""
    if settings.wildcard:
        return "::1" if ":" in settings.host else "127.0.0.1"
    return settings.host


def _worker(settings: Settings, url: str, environment: Mapping[str, str]) -> WorkerChild | None:
    if not settings.local_worker:
        return None
    program = find_worker()
    if program is None:
        log.warning("covey-convert is not installed: builds wait for workers elsewhere")
        return None
    own = {"COVEY_TOKEN": (settings.data / WORKER_TOKEN_FILE).read_text().strip()}
    command = [program, "worker", "--server", url, "--targets", ",".join(local_targets(settings))]
    if not settings.loopback:
        own["NO_PROXY"] = _own_host(settings)
        own["COVEY_CA"] = str((settings.data / "ca" / "root.pem").resolve())
    return WorkerChild(command, {**environment, **own}, settings.data / "worker.log", settings.worker_nice)


def _write_server_file(services: Services, url: str) -> None:
    told: dict[str, object] = {"url": url, "pid": os.getpid()}
    if services.fleet is not None:
        broker = services.fleet.broker_address
        told["broker"] = {"what": services.fleet.broker.what, "host": broker.host, "port": broker.port}
        if url.startswith("https:"):
            told["ca"] = str(services.fleet.ca.ca_path.resolve())
    write_durably(services.settings.data / SERVER_FILE, json.dumps(told).encode() + b"\n")
