"""The broker between server and devices: mosquitto as a supervised child, somebody else's by its URL, or amqtt for trying out.

A broker holds nothing that the server needs: it may be killed at any time and is started again. The port is chosen once
and kept in the data folder, since devices remember the address.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from covey_contract.enrolment import Broker as BrokerAddress
from covey_server.errors import EXIT_IN_USE, StartError
from covey_server.fleet import child
from covey_server.fleet.durable import write_durably
from covey_server.fleet.mosquitto_config import Layout, acl_text, config_text
from covey_server.fleet.ports import free_port, port_is_free

log = logging.getLogger(__name__)

_START_S = 10.0
# A server that was killed leaves a broker that needs a moment to save its state and go.
_PORT_FREE_S = 6.0
_STOP_S = 5.0
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_HEALTHY_AFTER_S = 30.0
_MAX_LOG_BYTES = 4 << 20


@dataclass(frozen=True)
class Revocations:
    """Whom the broker must no longer serve: revoked devices, and the revocation list in PEM."""

    devices: frozenset[str]
    crl: bytes


class Broker(Protocol):
    """What the fleet asks of any broker."""

    @property
    def what(self) -> str:
        """What it is, in a few words for people."""

    @property
    def address(self) -> BrokerAddress:
        """Where devices connect to."""

    @property
    def own_address(self) -> BrokerAddress:
        """Where the server itself connects to."""

    def start(self, revocations: Revocations) -> None:
        """Returns once the broker accepts connections; raises `StartError`."""

    def apply(self, revocations: Revocations) -> None:
        """From now on these devices are cut off."""

    def healthy(self) -> bool: ...

    def stop(self) -> None: ...


class ExternalBroker:
    """A broker that somebody else runs; its operators see to certificates, access list and revocation list."""

    what = "a broker of your own"

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def address(self) -> BrokerAddress:
        parts = urlsplit(self._url)
        try:
            port = parts.port
        except ValueError as error:
            raise StartError(f"broker_url {self._url!r}: {error}") from error
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise StartError(f"broker_url {self._url!r} is not mqtts://HOST[:PORT] or mqtt://HOST[:PORT]")
        tls = parts.scheme == "mqtts"
        return BrokerAddress(host=parts.hostname, port=port or (8883 if tls else 1883), tls=tls)

    @property
    def own_address(self) -> BrokerAddress:
        return self.address

    def start(self, revocations: Revocations) -> None:  # noqa: ARG002 - its operators install the revocation list
        address = self.address
        try:
            socket.create_connection((address.host, address.port), timeout=_START_S).close()
        except OSError as error:
            raise StartError(f"no broker answers at {address.host}:{address.port}: {error}") from error

    def apply(self, revocations: Revocations) -> None:
        log.warning(
            "install the revocation list (%d bytes) and deny %d devices at the external broker: Covey cannot",
            len(revocations.crl),
            len(revocations.devices),
        )

    def healthy(self) -> bool:
        return True  # the link says whether it is connected

    def stop(self) -> None:
        """It is not ours to stop."""


def find_mosquitto(configured: str | None) -> str | None:
    """The path of the mosquitto program, or None."""
    if configured is not None:
        return shutil.which(configured)
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def kept_port(folder: Path, bind: str, configured: int | None) -> int:
    """The configured port, or the one this folder's broker had before, or a free one that is remembered from now on.

    Raises `StartError` if it is in use, after a few seconds of waiting for a broker that is still ending.
    """
    remembered = folder / "port"
    port = configured
    if port is None:
        with contextlib.suppress(OSError, ValueError):
            port = int(remembered.read_text())
    if port is None:
        port = free_port(bind)
    deadline = time.monotonic() + _PORT_FREE_S
    while not port_is_free(port, bind):
        if time.monotonic() > deadline:
            raise StartError(f"the broker's port {port} on {bind} is in use by another program", EXIT_IN_USE)
        time.sleep(0.05)
    write_durably(remembered, f"{port}\n".encode())
    return port


class MosquittoBroker:
    """mosquitto with mTLS as a child: started again when it dies, ended with the server."""

    what = "mosquitto with mutual TLS and an access list per device"

    def __init__(self, program: str, layout: Layout, bind: str, public_host: str, configured_port: int | None) -> None:
        self._program = program
        self._layout = layout
        self._bind = bind
        self._public_host = public_host
        self._configured_port = configured_port
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.restarts = 0

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress(host=self._public_host, port=self._port)

    @property
    def own_address(self) -> BrokerAddress:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound
        return BrokerAddress(host=everywhere.get(self._bind, self._bind), port=self._port)

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def start(self, revocations: Revocations) -> None:
        layout = self._layout
        layout.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = kept_port(layout.folder, self._bind, self._configured_port)
        user = getpass.getuser() if os.geteuid() == 0 else None
        self._write(revocations)
        write_durably(layout.config, config_text(layout, self._bind, self._port, user).encode(), 0o600)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._supervise, name="covey-broker", daemon=True)
        self._thread.start()
        self._await_listening()

    def apply(self, revocations: Revocations) -> None:
        self._write(revocations)
        with self._lock:
            if self.pid is not None and self._process is not None:
                self._process.send_signal(signal.SIGHUP)

    def healthy(self) -> bool:
        return self.pid is not None

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _write(self, revocations: Revocations) -> None:
        write_durably(self._layout.acl, acl_text(revocations.devices).encode(), 0o600)
        write_durably(self._layout.crl, revocations.crl)

    def _supervise(self) -> None:
        """Lives as long as the child: the kernel ties a child to the thread that started it."""
        quick_deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            with self._lock:
                process = self._process = self._spawn()
            if self._stopping.is_set():  # asked to stop while it was being started
                process.terminate()
            code = process.wait()
            if self._stopping.is_set():
                return
            quick_deaths = 0 if time.monotonic() - started > _HEALTHY_AFTER_S else quick_deaths + 1
            pause = _BACKOFF_S[min(quick_deaths, len(_BACKOFF_S)) - 1] if quick_deaths else 0.0
            log.error("the broker ended with %d (%s); starting it again in %.1f s", code, self._last_words(), pause)
            self.restarts += 1
            self._stopping.wait(pause)

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = self._layout.log
        fresh = not path.exists() or path.stat().st_size > _MAX_LOG_BYTES
        command = [sys.executable, "-I", str(Path(child.__file__)), str(os.getpid())]
        command += [self._program, "-c", str(self._layout.config)]
        with path.open("wb" if fresh else "ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _await_listening(self) -> None:
        deadline = time.monotonic() + _START_S
        address = self.own_address
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1.0):
                return
            if self.restarts >= 2:
                break
            time.sleep(0.02)
        words = self._last_words()
        self.stop()
        raise StartError(f"mosquitto does not start: {words}")

    def _last_words(self) -> str:
        try:
            with self._layout.log.open("rb") as file:
                file.seek(max(0, self._layout.log.stat().st_size - 2048))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
        telling = [
            line for line in lines if "Warning: ACL pattern" not in line
        ]  # it is one for all devices, on purpose
        return telling[-1] if telling else "it said nothing"


def broker_hosts(public_host: str, *interfaces: str) -> Sequence[str]:
    """The names that the certificate of broker and API must carry; `interfaces` are those on which they listen."""
    wildcards: Iterable[str] = {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
    names = [public_host, "localhost", "127.0.0.1", "::1", socket.gethostname()]
    return [*names, *(interface for interface in interfaces if interface not in wildcards)]
