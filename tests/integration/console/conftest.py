"""A server's data folder filled with a small fleet in the middle of its life, the real application on a port, and Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_hil.testing.serving import served
from covey_server import audit
from covey_server.api import people, webhooks
from covey_server.app import build_services, create_app
from covey_server.db import tables as t
from covey_server.people.sessions import Holder, create_login_code
from covey_server.services import Services
from covey_server.settings import Settings
from tests.integration.console.campaign_rows import CampaignRows
from tests.integration.console.fleet_rows import FleetRows


class Seed:
    """Rows as the server itself would have written them."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.now = services.clock()

    def fill(self) -> None:
        fleet = FleetRows(self.now)
        with self.services.database.session() as session:
            fleet.fill(session)
        with self.services.database.session() as session:
            fleet.serve(session, "1.0", self.now - 7_200_000, 6.0)
            fleet.serve(session, "1.1", self.now - 1_500_000, 3.4)
        with self.services.database.session() as session:
            CampaignRows(fleet).fill(session)
        self.people()

    def people(self) -> None:
        """Somebody who was invited, and a webhook with a delivery that waits."""
        actor = audit.Actor("admin", "admin", "api 127.0.0.1")
        people.add_person(self.services, people.NewPerson(name="anna", role="approver"), actor)
        hook = webhooks.NewWebhook(name="chat", url="https://hooks.factory.example/covey", events=["campaign.halted"])
        webhooks.add_webhook(self.services, hook, actor)
        webhooks.test_webhook(self.services, "chat", actor)


@dataclass
class Console:
    """A running server with its seed."""

    services: Services
    seed: Seed
    url: str
    token: str

    def change(self, work: Callable[[Session], None], topic: str, key: str = "") -> None:
        with self.services.database.session() as session:
            work(session)
        self.services.bus.publish(topic, key)

    def code(self) -> str:
        with self.services.database.session() as session:
            admin = session.scalars(select(t.ApiToken.id).where(t.ApiToken.name == "admin")).one()
            return create_login_code(session, Holder(token_id=admin), self.services.clock(), 60).code


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    services = build_services(Settings(data=tmp_path_factory.mktemp("data"), local_worker=False))
    seed = Seed(services)
    seed.fill()
    # The background parts would judge and move what the seed has laid out; these tests are of the pages.
    with served(create_app(services)) as url:
        yield Console(services, seed, url, (services.settings.data / "admin-token").read_text().strip())
    services.database.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    switches = (
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    )
    path = next((one for one in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(one).exists()), None)
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(switches))
        yield browser
        browser.close()


class Visitor:
    """A browser window that is logged in, and everything that its console complained of."""

    def __init__(self, console: Console, context: BrowserContext) -> None:
        self.console = console
        self.context = context
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(15_000)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def enter(self) -> Page:
        self.page.goto(f"{self.console.url}/login?code={self.console.code()}")
        self.page.wait_for_url(f"{self.console.url}/")
        return self.page

    def go(self, where: str) -> Page:
        self.page.goto(self.console.url + where)
        return self.page


@pytest.fixture
def visitor(console: Console, chromium: Browser) -> Iterator[Visitor]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", timezone_id="Europe/Berlin")
    guest = Visitor(console, context)
    guest.enter()
    yield guest
    context.close()
    assert guest.complaints == []
