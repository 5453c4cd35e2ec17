"""The console in a real browser: every page in every light, what a person can do, and what arrives by itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from covey_server.db import tables as t

if TYPE_CHECKING:
    from tests.integration.console.conftest import Console, Visitor

ASSETS = Path(__file__).parents[3] / "fleet_server" / "console_assets"
PAGES = {
    "/": "Fleet",
    "/devices?q=gate&online=yes": "Devices",
    "/devices?q=nothing-like-this": "Devices",
    "/devices/press-1": "press-1",
    "/new-device": "Enrol a device",
    "/groups": "Groups",
    "/groups/line-a": "line-a",
    "/new-group?name=line-a": "Edit line-a",
    "/models": "Models",
    "/models/digits?version=1.2": "digits",
    "/builds/14": "onnxruntime-int8",
    "/push": "Push a version",
    "/campaigns": "Campaigns",
    "/campaigns/digits-1.2": "digits-1.2",
    "/campaigns/digits-1.3?state=rolled_back": "digits-1.3",
    "/new-campaign?clone=digits-1.2": "New campaign",
    "/audit?verify=true": "Audit",
    "/settings": "Settings",
    "/settings/people": "Settings",
    "/settings/tokens": "Settings",
    "/settings/keys": "Settings",
    "/settings/webhooks": "Settings",
}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility checker's source, as the lock file pins it."""
    found = ASSETS / "node_modules" / "axe-core" / "axe.min.js"
    if not found.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, so axe-core cannot be had")
        folder = tmp_path_factory.mktemp("axe")
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(ASSETS / name, folder / name)
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--loglevel=error"], cwd=folder, check=True, capture_output=True
        )
        found = folder / "node_modules" / "axe-core" / "axe.min.js"
    return found.read_text()


def violations(page: Page, axe: str) -> list[str]:
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_every_page_is_accessible_and_has_no_complaints(axe: str, visitor: Visitor) -> None:
    found: dict[str, list[str]] = {}
    for where, title in PAGES.items():
        page = visitor.go(where)
        expect(page.get_by_role("heading", level=1, name=title, exact=True)).to_be_visible()
        found[where] = violations(page, axe)
        assert " object at 0x" not in page.content(), where
    assert {where: problems for where, problems in found.items() if problems} == {}
    assert visitor.complaints == []


# The ones with the most on them, for the other theme, the other language and the phone.
FULL = (
    "/",
    "/devices?q=gate&online=yes",
    "/devices/press-1",
    "/new-group?name=line-a",
    "/models/digits?version=1.2",
    "/campaigns/digits-1.2",
    "/campaigns/digits-1.3?state=rolled_back",
    "/new-campaign?clone=digits-1.2",
    "/audit?verify=true",
    "/settings/webhooks",
)


def test_pages_are_accessible_in_the_dark_and_in_chinese(axe: str, visitor: Visitor) -> None:
    page = visitor.go("/settings")
    page.get_by_role("button", name="中文", exact=True).click()
    page.get_by_role("button", name="深色", exact=True).click()
    expect(page.get_by_role("button", name="深色", exact=True)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 19)"
    found = {where: violations(visitor.go(where), axe) for where in FULL}
    assert {where: problems for where, problems in found.items() if problems} == {}


def test_pages_fit_on_a_phone(visitor: Visitor) -> None:
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    for where in FULL:
        page = visitor.go(where)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, where


def test_the_policy_is_strict_and_assets_come_from_here(console: Console) -> None:
    answer = httpx.get(f"{console.url}/login")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon[a-z]+=", answer.text)
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
        asset = httpx.get(console.url + address)
        assert asset.status_code == 200
        assert "immutable" in asset.headers["cache-control"]
    assert httpx.get(f"{console.url}/static/x/../../routes.py").status_code == 404


def test_who_is_not_logged_in_sees_the_login_and_comes_back(console: Console, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(f"{console.url}/campaigns/digits-1.2?state=active")
    expect(page.get_by_role("heading", name="Log in", exact=True)).to_be_visible()
    page.get_by_text("With an API token").click()
    page.get_by_label("API token").fill("covey_wrong")
    page.get_by_role("button", name="Log in with the token", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    page.get_by_text("With an API token").click()
    page.get_by_label("API token").fill(console.token)
    page.get_by_role("button", name="Log in with the token", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="digits-1.2", exact=True)).to_be_visible()
    page.get_by_role("button", name="Log out", exact=True).click()
    expect(page.get_by_role("heading", name="Log in", exact=True)).to_be_visible()
    page.close()


def test_a_login_code_works_once_and_leads_nowhere_else(console: Console) -> None:
    code = console.code()
    first = httpx.get(f"{console.url}/login", params={"code": code, "next": "https://elsewhere.example/"})
    assert first.status_code == 200
    assert "elsewhere" not in first.text
    assert "httponly" in first.headers["set-cookie"].lower()
    assert httpx.get(f"{console.url}/login", params={"code": code}).status_code == 401


def test_a_change_arrives_by_itself_and_leaves_focus_and_details_alone(visitor: Visitor) -> None:
    page = visitor.go("/campaigns/digits-1.3")
    expect(page.locator(".live-state")).to_have_attribute("data-live", "live")
    page.get_by_text("Device by device").click()
    page.locator("#do-rollback, #do-start, .tabs a").first.focus()
    focused = page.evaluate("document.activeElement.outerHTML")

    def work(session: Session) -> None:
        session.execute(update(t.Campaign).where(t.Campaign.name == "digits-1.3").values(waiting_for="told by a test"))

    visitor.console.change(work, "campaign", "digits-1.3")
    expect(page.locator("#waiting")).to_contain_text("told by a test")
    assert page.evaluate("document.activeElement.outerHTML") == focused
    expect(page.locator("details[open]")).to_have_count(1)


def test_a_device_that_goes_off_is_seen_in_the_list(visitor: Visitor) -> None:
    page = visitor.go("/devices")
    row = page.locator("#device-press-3")
    expect(row).to_contain_text("online")
    expect(page.locator(".live-state")).to_have_attribute("data-live", "live")

    def off(session: Session) -> None:
        session.execute(update(t.Device).where(t.Device.id == "press-3").values(online=False))

    visitor.console.change(off, "device", "press-3")
    expect(row).to_contain_text("offline")


def test_searching_filters_on_the_server(visitor: Visitor) -> None:
    page = visitor.go("/devices")
    page.get_by_label("Search", exact=True).press_sequentially("gate")
    expect(page.locator("#live tbody tr")).to_have_count(2)
    expect(page.locator("#live tbody tr").first).to_contain_text("simulated")
    assert "q=gate" in page.url
    page.get_by_label("Connection", exact=True).select_option("no")
    expect(page.locator("#live tbody tr")).to_have_count(1)


def test_pausing_and_going_on(visitor: Visitor) -> None:
    page = visitor.go("/campaigns/digits-1.2")
    page.get_by_role("button", name="Pause", exact=True).press("Enter")
    expect(page.locator(".head .badge")).to_have_text("paused")
    with visitor.console.services.database.reading() as session:
        assert session.scalar(select(t.Campaign.state).where(t.Campaign.name == "digits-1.2")) == "paused"
        entry = session.scalars(select(t.AuditEntry).order_by(t.AuditEntry.id.desc()).limit(1)).one()
        assert (entry.who, entry.action, entry.object) == ("admin", "campaign.pause", "digits-1.2")
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator(".head .badge")).to_have_text("running")


def test_what_hurts_is_asked_first(visitor: Visitor) -> None:
    page = visitor.go("/campaigns/digits-1.2")
    page.get_by_role("button", name="Abort", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("End digits-1.2 here?")
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(dialog).to_be_hidden()
    with visitor.console.services.database.reading() as session:
        assert session.scalar(select(t.Campaign.state).where(t.Campaign.name == "digits-1.2")) == "running"


def test_a_change_without_the_csrf_token_is_refused(console: Console, visitor: Visitor) -> None:
    cookies = {one["name"]: one["value"] for one in visitor.context.cookies()}
    answer = httpx.post(f"{console.url}/campaigns/digits-1.2/abort", cookies=cookies)
    assert answer.status_code == 403


def test_a_plan_is_shown_before_anything_moves_and_then_kept(visitor: Visitor) -> None:
    page = visitor.go("/new-campaign?model=digits&version=1.1")
    file = page.get_by_label("Campaign file (YAML)")
    good = file.input_value().replace("name: digits-1.1", "name: by-hand")
    file.fill(good.replace("stages:", "stagez:"))
    page.get_by_role("button", name="Show the plan", exact=True).click()
    expect(page.locator("#plan-problem")).to_contain_text("stagez")
    expect(page.locator("#plan-problem")).to_contain_text("Line 4")
    file.fill(good)
    page.get_by_role("button", name="Show the plan", exact=True).click()
    expect(page.get_by_role("heading", name="Plan of by-hand", exact=True)).to_be_visible()
    expect(page.locator("#plan")).to_contain_text("press-1")
    with visitor.console.services.database.reading() as session:
        assert session.scalar(select(t.Campaign.id).where(t.Campaign.name == "by-hand")) is None
    page.get_by_role("button", name="Keep it for later", exact=True).click()
    page.wait_for_url("**/campaigns/by-hand")
    expect(page.locator(".head .badge")).to_have_text("planned")


def test_a_version_is_pushed_by_the_form(visitor: Visitor) -> None:
    page = visitor.go("/push?model=digits")
    page.get_by_label("Version", exact=True).fill("2.0")
    page.get_by_label("Trained model").set_input_files(
        {"name": "digits.onnx", "mimeType": "application/octet-stream", "buffer": b"onnx" * 100}
    )
    page.get_by_label("Targets").fill("openvino-int8 tflite-int8")
    page.get_by_role("button", name="Push", exact=True).click()
    page.wait_for_url("**/models/digits?version=2.0")
    expect(page.get_by_role("heading", name="Version 2.0", exact=True)).to_be_visible()
    expect(page.locator("#version tbody tr")).to_have_count(2)


def test_what_is_not_there_is_a_page(visitor: Visitor) -> None:
    page = visitor.go("/devices/nobody")
    expect(page.get_by_role("heading", name="Not found", exact=True)).to_be_visible()
    visitor.complaints.clear()  # Chromium notes the 404 itself
