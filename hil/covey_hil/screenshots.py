"""Pictures of the console for the README: the pages of a server on which the demo's story has been told."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey_client.api import Client
from covey_hil.processes import ProcessError

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZE = {"width": 1280, "height": 800}
MAX_BYTES = 250_000
PAGES = {
    "fleet": "/",
    "campaign": "/campaigns/digits-1.2",
    "device": "/devices/sorter-1",
    "model": "/models/digits",
}
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take_screenshots(url: str, token: str, folder: Path, pages: Sequence[str] = tuple(PAGES)) -> list[Path]:
    """Write one PNG per page into the folder and return them. Raises `ProcessError` where there is no browser."""
    browser_path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser_path is None:
        raise ProcessError("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise ProcessError("Playwright is not installed (./dev setup installs it)") from error
    folder.mkdir(parents=True, exist_ok=True)
    client = Client(url, token)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(_SWITCHES))
        try:
            page = browser.new_context(
                viewport={"width": SIZE["width"], "height": SIZE["height"]},
                device_scale_factor=1,
                color_scheme="light",
                reduced_motion="reduce",
            ).new_page()
            page.goto(f"{url}/login?code={client.create_login_code()['code']}")
            page.wait_for_url(f"{url}/")
            return [_take(page, url + PAGES[name], folder / f"{name}.png") for name in pages]
        finally:
            browser.close()


def _take(page: Page, address: str, path: Path) -> Path:
    page.goto(address)
    page.locator(".live-state[data-live=live]").wait_for()
    page.evaluate("document.fonts.ready")
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
