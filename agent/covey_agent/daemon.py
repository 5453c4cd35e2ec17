"""The control process's composition root: everything is made, wired, started and stopped here, and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import logging.handlers
import os
import random
import signal
import sqlite3
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from covey_agent import __version__, durable
from covey_agent.asks import FOLDER as ASKS
from covey_agent.asks import AskFolder
from covey_agent.book import Book
from covey_agent.bundle import Bundles
from covey_agent.commands import Commands
from covey_agent.control import Control, Inbox
from covey_agent.core.acceptance import Machine
from covey_agent.core.state import AgentState
from covey_agent.credentials import Credentials
from covey_agent.deployments import Deployments
from covey_agent.errors import AgentError, AlreadyRunningError
from covey_agent.facts import installed_runtimes, measure_facts, read_facts
from covey_agent.gateway_process import GatewayProcess, prepare_run_folder
from covey_agent.identity import CA, FACTS, ROOT, Identity, load_identity
from covey_agent.installing import Installer
from covey_agent.jobs import Jobs
from covey_agent.link import Arrived, Link
from covey_agent.manual import Manual
from covey_agent.measure import Meter
from covey_agent.memory import available_mb
from covey_agent.outbox import LIMIT, Outbox
from covey_agent.renewal import Renewal
from covey_agent.renewal_relay import RenewalRelay
from covey_agent.renewing import Asker
from covey_agent.samples import Samples
from covey_agent.serving import Serving
from covey_agent.settings import Settings
from covey_agent.store import Store
from covey_agent.supervisor import supervisor_of
from covey_agent.surroundings import look_around
from covey_agent.tap import SOCKET, Tap
from covey_agent.trusted_clock import TrustedClock
from covey_agent.tuf.relay import Relay
from covey_agent.tuf.vouching import Vouching
from covey_agent.web_blocks import WebBlocks
from covey_contract.blocks import Block, frame_of
from covey_contract.messages import BlockRequest, Report
from covey_contract.reasons import Reason
from covey_contract.signing import Trust
from covey_contract.topics import Down, Up, down

log = logging.getLogger(__name__)

_FACTS_AGE_S = 600.0
# A spool has fewer than 1024 times as many records in its life: 30 days of milliseconds.
_SPOOL_SPAN_MS = 30 * 86_400_000


def run(settings: Settings, *, keep_gateway: bool = False) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises `AgentError`, with one line for people, if it cannot start."""
    identity = load_identity(settings.identity)
    supervisor = supervisor_of(os.environ)
    with locked(settings.state):
        book, last_exit, store, outbox = take_up(settings)
        machine = machine_reader(settings)
        machine.read()
        log.info("covey-agent %s, device %s%s", __version__, identity.device, machine.words)

        folder = prepare_run_folder(settings.state)
        gateway = GatewayProcess(folder, settings.gateway_log, settings.inference_port, gateway_options(settings))
        if gateway.find() is None:
            gateway.check_port()
        boot_id = uuid.uuid4().hex
        inbox = Inbox()
        jobs = Jobs(inbox.finished)
        link = Link(
            identity.device,
            identity.broker,
            settings.identity,
            inbox.offer,
            boot_id=boot_id,
            draw=random.SystemRandom(),
        )
        block_topic = down(identity.device, Down.BLOCK)

        def arrived(block: Block) -> bool:
            return inbox.offer(Arrived(block_topic, frame_of(block)))

        web = WebBlocks(
            identity.server, lambda: ssl.create_default_context(cafile=str(settings.identity / CA)), arrived
        )
        bundles = Bundles(arrived)
        clock = TrustedClock(identity.device, system_clock, time.monotonic, lambda: book.state.time_floor_ms)
        relay = Relay(lambda message: link.send(Up.METADATA, message))
        vouching = vouching_of(settings, identity, relay, clock)
        trust = trust_of(identity, vouching)
        serving = Serving(settings, book, store, gateway.client, jobs, clock)
        credentials = Credentials(settings.identity)
        renewal_relay = RenewalRelay(lambda message: link.send(Up.RENEWAL, message))
        renewal = Renewal(
            identity.device,
            settings.state,
            credentials,
            Asker(identity.device, identity.server, settings.identity, credentials, renewal_relay.ask),
            clock=lambda: max(clock(), book.state.time_floor_ms),
            draw=random.SystemRandom(),
            try_out=link.renew,
            first_s=settings.retry_first_s,
            most_s=settings.retry_most_s,
        )
        # The loop is made last, and is what reports go through.
        control: Control | None = None

        def report(message: Report) -> None:
            if control is not None:
                control.spool(message)

        def request(message: BlockRequest) -> None:
            link.send(Up.BLOCK_REQUEST, message, qos=0)

        deployments = Deployments(
            identity.device,
            trust,
            settings,
            book=book,
            store=store,
            serving=serving,
            jobs=jobs,
            machine=machine.read,
            surroundings=look_around,
            free=lambda: psutil.disk_usage(str(settings.state)).free,
            memory=available_mb,
            report=report,
            request=request,
            clock=clock,
            vouching=vouching,
            listen=link.listen,
            web=web.ask,
            bundles=bundles,
        )
        manual = Manual(book, serving, clock, deployments.tell)
        control = Control(
            identity.device,
            settings,
            boot_id=boot_id,
            last_exit=last_exit,
            inbox=inbox,
            link=link,
            book=book,
            outbox=outbox,
            gateway=gateway,
            serving=serving,
            deployments=deployments,
            commands=Commands(
                identity.device,
                trust,
                facts=lambda: machine.read().facts,
                logs=(settings.log_file, settings.gateway_log),
                diagnose=lambda: _diagnosed(settings),
                renew=renewal.ask_now,
                samples=Samples(settings.captured, settings.capture_share > 0, settings.capture_send),
                clock=clock,
            ),
            machine=machine.read,
            meter=Meter(settings.state, may_leave=settings.capture_send),
            supervisor=supervisor,
            asks=AskFolder(settings.state, Installer(identity.device, deployments, manual).obey),
            clock=clock,
            relay=relay,
            renewal=renewal,
            renewal_relay=renewal_relay,
            tap=Tap(folder / SOCKET),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: control.stop())
        jobs.start()
        web.start()
        try:
            link.start()
        except (OSError, ssl.SSLError) as error:
            raise AgentError(f"the identity in {settings.identity} cannot be used: {error}") from error
        try:
            control.run()
        finally:
            log.info("stopping")
            supervisor.stopping()
            jobs.stop()
            web.stop()
            bundles.stop()
            link.close()
            deployments.stop()
            outbox.flush()
            told = not outbox.held
            outbox.close()
            if not keep_gateway:
                gateway.stop()
            if told:
                end(book)


def _diagnosed(settings: Settings) -> bytes:
    # Imported when it is asked for: it needs much that the daemon does not.
    from covey_agent.diagnostics import collect

    return msgspec.json.encode(collect(settings.state, margin=settings.margin, reach=False))


def gateway_options(settings: Settings) -> list[str]:
    words: list[str] = []
    if settings.inference_socket is not None:
        words += ["--socket", str(settings.inference_socket)]
    for budget in settings.budgets:
        words += ["--budget", budget]
    if settings.capture_share > 0:
        words += ["--capture", str(settings.captured)]
        words += ["--capture-share", str(settings.capture_share), "--capture-mb", str(settings.capture_mb)]
    return words


def vouching_of(settings: Settings, identity: Identity, relay: Relay, clock: TrustedClock) -> Vouching | None:
    """The repository of releases, for a device that enrolled with its root. What is trusted of one is kept apart from another's."""
    root = settings.identity / ROOT
    try:
        name = hashlib.sha256(root.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        log.warning("this device enrolled without a root of releases: it trusts the release key alone; enrol it again")
        return None
    ca = settings.identity / CA
    return Vouching(settings.state / "tuf" / name, root, ca, identity.server, relay.fetch, clock.corrected)


def trust_of(identity: Identity, vouching: Vouching | None) -> Trust:
    """Who may give orders: by the newest root, where there is one."""
    directors = vouching.directors() if vouching is not None else ()
    return msgspec.structs.replace(identity.trust, director=directors) if directors else identity.trust


def system_clock() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """One agent a state folder. Raises `AlreadyRunningError`."""
    try:
        try:
            descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            descriptor = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC)  # it can be locked all the same
    except OSError as error:
        raise AgentError(f"{state} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(f"another agent runs on {state}") from None
        yield
    finally:
        os.close(descriptor)


def is_running(state: Path) -> bool:
    """Whether an agent holds the folder; leaves nothing there."""
    if not (state / "lock").exists():
        return False
    try:
        with locked(state):
            return False
    except AlreadyRunningError:
        return True


class _LogFile(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: the line still goes to standard error, and there is nowhere to say more."""


class TakenUp(NamedTuple):
    """What lies on disk between two runs, and how the run before ended."""

    book: Book
    last_exit: Reason
    store: Store
    outbox: Outbox


def take_up(settings: Settings, clock: Callable[[], int] = system_clock, spool_limit: int = LIMIT) -> TakenUp:
    """Go on from the state folder, whatever the run before has left there. Raises `AgentError` where that cannot be."""
    try:
        prepare(settings)
        book = Book(settings.state)
        last_exit = begin(book)
        store = Store(settings.state)
        store.prepare()
        outbox = Outbox(settings.state / "outbox.db", clock=lambda: spool_start(book, clock()), limit=spool_limit)
        try:
            outbox.open()
        except (OSError, sqlite3.Error) as error:
            log.error("the spool cannot be opened now: %s", error)
    except (OSError, sqlite3.Error) as error:
        raise AgentError(f"{settings.state} cannot be used: {error}") from error
    return TakenUp(book, last_exit, store, outbox)


def spool_start(book: Book, now_ms: int) -> int:
    """Where a new spool's numbers begin (see `outbox`): beyond those of the one before, also when the clock was set back. Raises `OSError`."""
    before = book.state.spool_start_ms
    start_ms = max(now_ms, book.state.time_floor_ms, before + _SPOOL_SPAN_MS if before else 0)
    book.change(lambda state: msgspec.structs.replace(state, spool_start_ms=start_ms))
    return start_ms


def prepare(settings: Settings) -> None:
    for name in ("run", "log", "fetch", "orders", ASKS):
        durable.make_folder(settings.state / name)
    for folder in (settings.state, settings.state / "orders"):
        durable.sweep(folder)
    try:
        handler = _LogFile(settings.log_file, maxBytes=1_000_000, backupCount=2)
    except OSError as error:
        log.error("there is no log file: %s", error)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def begin(book: Book) -> Reason:
    """Load the book; how the run before ended. Raises `OSError` if it cannot be read."""
    before = book.load()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    try:
        book.change(lambda state: msgspec.structs.replace(state, clean_stop=False, kernel_boot=boot))
    except OSError as error:
        # A full disk is no reason to serve nothing. What must be stored before it is done waits for room.
        log.error("the start could not be noted: %s", error)
    if before == AgentState():
        return Reason.STARTED
    if before.clean_stop:
        return Reason.STOPPED
    return Reason.POWER_LOSS if boot and boot != before.kernel_boot else Reason.INTERNAL


def end(book: Book) -> None:
    try:
        book.change(lambda state: msgspec.structs.replace(state, clean_stop=True))
    except OSError as error:
        log.warning("the clean end could not be noted: %s", error)


class MachineReader:
    """The device's facts, measured anew when they are older than ten minutes; or a file's, for a simulated device."""

    def __init__(self, settings: Settings, facts_file: Path | None) -> None:
        self._settings = settings
        self._facts_file = facts_file
        self._machine: Machine | None = None
        self._at = 0.0

    @property
    def words(self) -> str:
        return " (simulated)" if self._facts_file is not None else ""

    def read(self) -> Machine:
        now = time.monotonic()
        if self._machine is None or now - self._at > _FACTS_AGE_S:
            if self._facts_file is not None:
                facts = read_facts(self._facts_file)
            else:
                facts = measure_facts(self._settings.state)
            self._machine, self._at = Machine(facts, installed_runtimes()), now
        return self._machine


def machine_reader(settings: Settings) -> MachineReader:
    """A device that enrolled with a facts file stays simulated."""
    kept = settings.identity / FACTS
    return MachineReader(settings, settings.facts_file or (kept if kept.exists() else None))
