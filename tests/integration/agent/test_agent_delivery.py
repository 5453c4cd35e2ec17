"""A whole agent that hears a broadcast, or fetches by HTTPS; what is missing it asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from covey_contract.lifecycle import State
from covey_contract.messages import Offer
from covey_hil.testing.agent_site import Site
from covey_hil.testing.made_builds import MadeBuild

Make = Callable[..., MadeBuild]
Wait = Callable[..., Any]
FILLER = 2  # its index on the wire
TABLE = 0


def test_a_broadcast_is_heard_and_what_it_left_out_is_asked_for(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    build = make("1.0", 2.0, filler=1_000_000)
    server.offer = Offer(broadcast=True)
    device.start()
    wait_for(lambda: server.hellos, "the hello")
    order = server.order(build)
    wait_for(lambda: State.FETCHING in server.states(order), "the fetch to begin")
    deadline = time.monotonic() + 60.0
    while server.states(order)[-1] is State.FETCHING and time.monotonic() < deadline:
        # Once would do, were it certain that the device listens already.
        server.broadcast(build, leave_out={(FILLER, 7)})
        again = time.monotonic() + 4.0
        while server.states(order)[-1] is State.FETCHING and time.monotonic() < again:
            time.sleep(0.05)
    report = server.reached(order, State.ACTIVE)
    assert report.bytes_fetched == sum(map(len, build.contents))
    asked = {(file, index) for _, file, index in server.sent}
    assert (FILLER, 7) in asked
    assert asked <= {(FILLER, 7), (TABLE, 0)}
    assert device.infer(5.0) == 10.0


def test_a_build_comes_by_https(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    build = make("1.0", 2.0, filler=1_000_000)
    entries = build.manifest.wire_files()
    files = {entry.sha256: content for entry, content in zip(entries, build.contents, strict=True)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            data = files[self.path.rpartition("/")[2]]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            self.wfile.write(data[first : last + 1])

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        server.offer = Offer(url=f"http://127.0.0.1:{web.server_port}/{{sha256}}")
        device.start()
        wait_for(lambda: server.hellos, "the hello")
        order = server.order(build)
        report = server.reached(order, State.ACTIVE)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()
    assert report.bytes_fetched == sum(map(len, build.contents))
    assert not server.sent
    assert device.infer(5.0) == 10.0
