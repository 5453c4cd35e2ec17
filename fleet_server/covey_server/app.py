"""The composition root: every part of the server is made here, given to those that need it, started and stopped.

`build_services` makes (and at the first start initialises the data folder), `create_app` wires the API, `running` runs the
background parts. Nothing is started by a constructor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI

from covey_server import tokens
from covey_server.bus import Bus
from covey_server.campaigns.service import CampaignService
from covey_server.clock import Clock, system_clock
from covey_server.db.engine import Database
from covey_server.errors import StartError
from covey_server.fleet.ca import FleetCA
from covey_server.fleet.service import FleetService
from covey_server.middleware import Guard
from covey_server.notifications.mail import Mailer
from covey_server.notifications.outbox import Mailing
from covey_server.notifications.sealing import Seal
from covey_server.notifications.sending import Sender
from covey_server.notifications.service import NotificationService
from covey_server.registry.blobs import BlobStore
from covey_server.registry.checks import CHECK_TARGET
from covey_server.registry.housekeeping import Housekeeping
from covey_server.registry.keys import SigningKeys
from covey_server.registry.workers import Workers
from covey_server.releases.bootstrap import open_releases
from covey_server.releases.catch_up import CatchUp
from covey_server.releases.upkeep import Upkeep
from covey_server.routes import application
from covey_server.services import Services
from covey_server.settings import LOCAL_TARGETS, Settings
from covey_server.tracing.requests import TraceRequests
from covey_server.tracing.spans import OFF, Tracing
from covey_server.tracing.swaps import SwapTracer

log = logging.getLogger(__name__)

ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - a file's name
WORKER_TOKEN_FILE = "worker-token"  # noqa: S105 - a file's name


def build_services(settings: Settings, clock: Clock = system_clock) -> Services:
    """All parts, on a data folder that is made ready if it is new. Raises `StartError`."""
    data = settings.data
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        now_ms = clock()
        blobs = BlobStore(data / "blobs")
        blobs.folder.mkdir(exist_ok=True)
        blobs.clear_incoming()
        database = Database(settings.database)
        database.migrate()
        keys = SigningKeys.load_or_create(data / "keys")
        releases = open_releases(settings, clock, keys)
        ca = FleetCA.load_or_create(data / "ca", now_ms)
        seal = Seal.load_or_create(data)
        with database.session() as session:
            tokens.ensure_file(session, data / ADMIN_TOKEN_FILE, "admin", "admin", now_ms)
            tokens.ensure_file(session, data / WORKER_TOKEN_FILE, "local-worker", "worker", now_ms)
    except OSError as error:
        raise StartError(f"the data folder {data} cannot be used: {error.strerror or error}") from error
    except ValueError as error:
        raise StartError(f"the data folder {data}: {error}") from error
    bus = Bus()
    fleet = FleetService(settings, database, clock, bus, keys, blobs, ca, releases=releases)
    campaigns = CampaignService(database, clock, bus, fleet.wake, settings.campaign_tick_s, fleet.precedence)
    workers = Workers(local_targets(settings) if settings.local_worker else ())
    notifications = NotificationService(
        database,
        clock,
        bus,
        seal,
        Sender(Mailer(settings), private=settings.webhook_private, timeout_s=settings.webhook_timeout_s),
        Mailing(settings.mail_to, settings.mail_events),
        console_url=settings.console_url,
        keep_days=settings.notices_keep_days,
    )
    return Services(
        *(settings, clock, database, bus, blobs, keys, fleet, campaigns, workers, releases, notifications, seal),
        tracing=open_tracing(settings),
    )


def create_app(services: Services) -> FastAPI:
    """The application over these services. Its lifespan runs the background parts, see `running`."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Not in the thread pool: the broker's process is tied to the thread that starts it.
        with running(services):
            yield

    app = application(lifespan)
    app.state.services = services
    app.add_middleware(Guard, settings=services.settings)
    if services.tracing.on:
        app.add_middleware(TraceRequests, tracing=services.tracing)
    return app


@contextlib.contextmanager
def running(services: Services) -> Iterator[None]:
    """Run the background parts; in the end they are stopped in the opposite order. Raises `StartError`."""
    housekeeping = Housekeeping(services.database, services.clock, services.bus, services.settings.build_attempts)
    upkeep = None
    if services.releases is not None:
        upkeep = Upkeep(services.releases, CatchUp(services.database, services.releases))
    tracer = None
    if services.tracing.on:
        share = services.settings.otel_deployments
        tracer = SwapTracer(services.database, services.bus, services.tracing, share)
    with contextlib.ExitStack() as started:
        started.callback(services.database.close)
        for part in (tracer, upkeep, services.fleet, services.campaigns, housekeeping, services.notifications):
            if part is not None:
                part.start()
                started.callback(part.stop)
        yield


def open_tracing(settings: Settings) -> Tracing:
    """Raises `StartError` if traces are wanted and OpenTelemetry is not installed."""
    if not settings.otel_endpoint:
        return OFF
    try:
        from covey_server.tracing.opentelemetry import OpenTelemetryTracing
    except ImportError as error:
        raise StartError(
            "setting otel_endpoint: traces need the extra otel: pip install 'covey-server[otel]'"
        ) from error
    return OpenTelemetryTracing(settings.otel_endpoint, settings.otel_ratio)


def local_targets(settings: Settings) -> tuple[str, ...]:
    """What the local worker builds: what the setting names; by default all CPU targets, and the check of a graph for TensorRT
    where TensorRT-RTX is installed (looked for, not imported: the server runs no toolchain)."""
    if settings.worker_targets:
        return settings.worker_targets
    has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None
    return (*LOCAL_TARGETS, CHECK_TARGET) if has_rtx else LOCAL_TARGETS
