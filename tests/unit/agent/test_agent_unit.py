"""The systemd units: hardened, and as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
UNIT = DEPLOY / "covey-agent.service"
UNITS = sorted(DEPLOY.glob("*.service"))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_is_hardened(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = re.search(rf"Overall exposure level for {re.escape(unit.name)}: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd cannot judge a file: {done.stderr[:200]}")
    assert float(found[1]) < 3


@needs_systemd
@pytest.mark.parametrize("given", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_every_line(tmp_path: Path, given: Path) -> None:
    unit = tmp_path / given.name
    unit.write_text(re.sub(r"/opt/[\w-]+/bin/[\w-]+", "/bin/true", given.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Unknown" not in done.stderr
    assert unit.name not in done.stderr


def test_devices_and_compilers_of_runtimes_stay_within_reach() -> None:
    lines = UNIT.read_text().splitlines()
    for closed in ("PrivateDevices=yes", "ProtectClock=yes", "MemoryDenyWriteExecute=yes"):
        assert closed not in lines
