"""A server that is told to end does not wait for the pages that are open."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

PROGRAM = str(Path(sys.executable).with_name("covey-server"))


def test_a_server_with_a_page_open_ends_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [PROGRAM, "run", "--data", str(data), "--listen", "127.0.0.1:0", "--local-worker", "false"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not (data / "server.json").exists() and time.monotonic() < deadline:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        url = json.loads((data / "server.json").read_text())["url"]
        headers = {"Authorization": f"Bearer {(data / 'admin-token').read_text().strip()}"}
        with httpx.stream("GET", f"{url}/live/fleet", headers=headers, timeout=30) as page:
            lines = page.iter_lines()
            assert any("event: live" in line for line in lines)
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            for _ in lines:
                pass  # the stream ends properly: httpx raises where it is cut off
            let_go_s = time.monotonic() - began
        assert server.wait(30) == 0
        assert let_go_s < 2.5, "uvicorn waited for the stream"
        assert "Traceback" not in log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
