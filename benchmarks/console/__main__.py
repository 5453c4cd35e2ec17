"""How long each page of the console takes to answer over HTTP, with a fleet of 10,000 devices in the database.

`./dev bench console [--quick] [--json]`. The server is the real application over SQLite, without its background parts, in this
process; each page is asked for one after the other by one client that is logged in. Times are from the request to the last byte of
the answer; `cpu_ms` is the processor time of server and client together, which other work on the machine does not lengthen. The
limit is 100 ms at the 95th percentile.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from sqlalchemy import select

from benchmarks.console.fleet import fill
from benchmarks.scale.million import NOW_MS
from covey_server.app import build_services, create_app
from covey_server.db.tables import ApiToken
from covey_server.people.sessions import Holder, create_login_code
from covey_server.services import Services
from covey_server.settings import Settings

LIMIT_MS = 100.0
PAGES = (
    "/",
    "/devices",
    "/devices?after=dev-0005000",
    "/devices?q=dev-00012",
    "/devices?group=site-3&online=yes",
    "/devices?profile=raspberry-pi-5&standing=on_target",
    "/devices?standing=behind",
    "/devices?standing=failed",
    "/devices?runs=digits%401.0",
    "/devices/dev-0001234",
    "/groups",
    "/groups/site-3",
    "/groups/list-3",
    "/new-group?name=site-3",
    "/models",
    "/models/digits",
    "/campaigns",
    "/campaigns/digits-1.2",
    "/campaigns/digits-1.2?state=planned",
    "/campaigns/digits-1.1-0",
    "/new-campaign",
    "/new-campaign?clone=digits-1.2",
    "/audit",
    "/audit?who=admin&kind=device",
    "/settings",
    "/settings/tokens",
)
# Parts that pages ask for when they come into sight.
PARTS = ("/groups/site-3/count", "/models/digits/choices?version=1.2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="one minute of telemetry and 10 requests a page, not 5 and 40"
    )
    parser.add_argument("--devices", type=int, default=10_000)
    options = parser.parse_args()
    windows, requests, ended = (6, 10, 3) if options.quick else (30, 40, 10)
    with tempfile.TemporaryDirectory(prefix="covey-console-") as folder:
        services = build_services(Settings(data=Path(folder), local_worker=False), clock=lambda: NOW_MS)
        started = time.monotonic()
        rows = fill(services, options.devices, windows, ended)
        print(f"fleet of {rows} made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        with serving(services) as url:
            record = {**rows, "requests": requests, **measure(services, url, requests)}
        services.database.close()
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        for page, figures in {**record["pages"], **record["parts"]}.items():
            print(
                f"{page:52} p50 {figures['p50_ms']:7.1f} ms  p95 {figures['p95_ms']:7.1f} ms  cpu {figures['cpu_ms']:6.1f} ms  {figures['kb']:6.1f} kB"
            )
    return 0 if record["worst_p95_ms"] <= LIMIT_MS else 1


def measure(services: Services, url: str, requests: int) -> dict[str, Any]:
    with services.database.session() as session:
        admin = session.scalars(select(ApiToken.id).where(ApiToken.name == "admin")).one()
        code = create_login_code(session, Holder(token_id=admin), NOW_MS, 3600).code
    with httpx.Client(base_url=url, timeout=60, follow_redirects=False) as client:
        client.get("/login", params={"code": code}).raise_for_status()
        pages = {page: timed(client, page, requests) for page in PAGES}
        parts = {part: timed(client, part, requests) for part in PARTS}
    worst = max(pages, key=lambda page: float(pages[page]["p95_ms"]))
    return {"worst_p95_ms": pages[worst]["p95_ms"], "worst_page": worst, "pages": pages, "parts": parts}


def timed(client: httpx.Client, page: str, requests: int) -> dict[str, float]:
    """The first request warms what a running server has warm."""
    size, took, worked = 0, [], []
    for _ in range(requests + 1):
        started, busy = time.perf_counter(), time.process_time()
        answer = client.get(page)
        took.append((time.perf_counter() - started) * 1000)
        worked.append((time.process_time() - busy) * 1000)
        if answer.status_code != 200:
            raise SystemExit(f"{page} answers {answer.status_code}")
        size = len(answer.content)
    cuts = statistics.quantiles(took[1:], n=20, method="inclusive")
    return {
        "p50_ms": round(statistics.median(took[1:]), 1),
        "p95_ms": round(cuts[18], 1),
        "max_ms": round(max(took[1:]), 1),
        "cpu_ms": round(statistics.median(worked[1:]), 1),
        "kb": round(size / 1000, 1),
    }


@contextmanager
def serving(services: Services) -> Iterator[str]:
    """The application on a port, without its background parts, which would judge and move what was laid out."""
    server = uvicorn.Server(uvicorn.Config(create_app(services), lifespan="off", log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the server's own
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()


if __name__ == "__main__":
    raise SystemExit(main())
