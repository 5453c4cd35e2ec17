"""Pictures of every page of the console, for the docs: of a server on which the demo's story has been told."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from covey_client.api import Client
from covey_hil.processes import ProcessError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MAX_BYTES = 250_000
MAX_HEIGHT = 1500
WIDTH, HEIGHT = 1280, 800
PHONE_WIDTH, PHONE_HEIGHT = 390, 844


@dataclass(frozen=True)
class Shot:
    """One picture. `click` is a button that is pressed first, and `until` what is to be seen then."""

    name: str
    path: str
    scheme: Literal["light", "dark"] = "light"
    language: str = "en"
    phone: bool = False
    click: str = ""
    until: str = ""


SHOTS: tuple[Shot, ...] = (
    Shot("fleet", "/"),
    Shot("devices", "/devices"),
    Shot("device", "/devices/sorter-1"),
    Shot("enrol", "/new-device"),
    Shot("groups", "/groups"),
    Shot("group", "/groups/canary"),
    Shot("group-edit", "/new-group?name=canary"),
    Shot("models", "/models"),
    Shot("model", "/models/digits"),
    Shot("build", "/builds/1"),
    Shot("push", "/push"),
    Shot("campaigns", "/campaigns"),
    Shot("campaign", "/campaigns/digits-1.2"),
    Shot("campaign-done", "/campaigns/digits-1.1"),
    Shot("builder", "/new-campaign?clone=digits-1.1", click="#show-plan", until="#plan .stages"),
    Shot("audit", "/audit"),
    Shot("settings", "/settings"),
    Shot("people", "/settings/people"),
    Shot("tokens", "/settings/tokens"),
    Shot("keys", "/settings/keys"),
    Shot("webhooks", "/settings/webhooks"),
    Shot("dark", "/campaigns/digits-1.2", scheme="dark"),
    Shot("chinese", "/campaigns/digits-1.2", language="zh-CN"),
    Shot("phone", "/campaigns/digits-1.2", phone=True),
)
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take_screenshots(url: str, token: str, folder: Path, shots: Sequence[Shot] = SHOTS) -> list[Path]:
    """Write one PNG per shot into the folder and return them. Raises `ProcessError` where there is no browser, or where a page
    does not come up."""
    browser_path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser_path is None:
        raise ProcessError("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise ProcessError("Playwright is not installed (./dev setup installs it)") from error
    folder.mkdir(parents=True, exist_ok=True)
    client = Client(url, token)
    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(_SWITCHES))
        try:
            # One login for all pictures, so that the audit log tells of the story and not of its painter.
            session = _log_in(browser, url, client.create_login_code()["code"])
            for shot in shots:
                with _window(browser, shot, session) as page:
                    taken.append(_take(page, url, shot, folder))
        finally:
            browser.close()
    return taken


def _log_in(browser: Browser, url: str, code: str) -> Any:
    """What a browser keeps of a session."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{url}/login?code={code}")
        page.wait_for_url(f"{url}/")
        return context.storage_state()
    finally:
        context.close()


@contextmanager
def _window(browser: Browser, shot: Shot, session: Any) -> Iterator[Page]:
    width, height = (PHONE_WIDTH, PHONE_HEIGHT) if shot.phone else (WIDTH, HEIGHT)
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=1,
        color_scheme=shot.scheme,
        locale=shot.language,
        timezone_id="UTC",
        reduced_motion="reduce",
        storage_state=session,
    )
    try:
        yield context.new_page()
    finally:
        context.close()


def _take(page: Page, url: str, shot: Shot, folder: Path) -> Path:
    answer = page.goto(url + shot.path)
    if answer is None or not answer.ok:
        raise ProcessError(f"{shot.path} answers {answer.status if answer else 'nothing'}")
    if page.locator(".live-state").count():
        page.locator(".live-state[data-live=live]").wait_for()
    if shot.click:
        page.locator(shot.click).click()
        page.locator(shot.until).wait_for()
    page.evaluate("document.fonts.ready")
    width = PHONE_WIDTH if shot.phone else WIDTH
    height = min(page.evaluate("document.documentElement.scrollHeight"), MAX_HEIGHT)
    page.set_viewport_size({"width": width, "height": height})
    # Parts that are asked for when they come into sight; charts are drawn anew at the new size.
    page.locator("[hx-trigger='intersect once'] >> text=…").first.wait_for(state="detached")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    path = folder / f"{shot.name}.png"
    page.screenshot(path=path)
    _optimise(path)
    if path.stat().st_size > MAX_BYTES:
        # A long page of small print: its first screen shows as well what it is.
        page.set_viewport_size({"width": width, "height": PHONE_HEIGHT if shot.phone else HEIGHT})
        page.screenshot(path=path)
        _optimise(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ProcessError(f"{path.name} has {size:,} bytes; at most {MAX_BYTES:,}")
    return path


def _optimise(path: Path) -> None:
    """Fewer bytes for the same picture, where Pillow is installed."""
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ModuleNotFoundError:
        return
    with pillow.open(path) as picture:
        smaller = picture.convert("RGB").quantize(colors=256, dither=0)
    smaller.save(path, optimize=True)
