"""Blocks by HTTPS: the same fetch, another way; whatever a web server answers, only true blocks are kept and MQTT is still there."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from covey_agent.fetch import Fetcher
from covey_agent.store import Store
from covey_agent.web_blocks import WebBlocks
from covey_contract.blocks import Block
from covey_contract.messages import BlockRequest, Offer
from covey_hil.testing.random_builds import BLOCK, RandomBuild

Make = Callable[..., RandomBuild]
OFFER = Offer(url="/files/{sha256}", token="ticket")


class Web:
    """A web server of one build's files. `spoil` changes an answer: (status, headers, body)."""

    def __init__(self, build: RandomBuild) -> None:
        self.files = dict(zip((entry.sha256 for entry in build.manifest.wire_files()), build.contents, strict=True))
        self.asked: list[tuple[str, str, str]] = []
        self.spoil: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: Any) -> None:
                """Nothing is logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.rpartition("/")[2], handler.headers["Range"]
        self.asked.append((name, wanted, handler.headers.get("Authorization", "")))
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        data = self.files[name]
        body = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": str(len(body))}
        status = 206
        if self.spoil is not None:
            status, headers, body = self.spoil(status, headers, body)
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)
        if headers.get("Connection") == "close":
            handler.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Device:
    """A fetcher that asks by HTTPS, and by MQTT where that is refused; the latter is a function."""

    def __init__(self, build: RandomBuild, fetcher: Fetcher, server: str) -> None:
        self.build, self.fetcher = build, fetcher
        self.arrived: queue.Queue[Block] = queue.Queue()
        self.by_mqtt: list[BlockRequest] = []
        self.web = WebBlocks(server, ssl.create_default_context, self._arrive)
        self.web.start()
        fetcher.open()

    def _arrive(self, block: Block) -> bool:
        self.arrived.put(block)
        return True

    def go_on(self, *, until: Callable[[], bool], offer: Offer = OFFER) -> None:
        """Time goes on by a second with each block, or with nothing for a while."""
        now = 0.0
        for _ in range(3000):
            if until():
                return
            for request in self.fetcher.tick(now, connected=True):
                entry = self.build.manifest.wire_files()[request.file]
                if not self.web.ask(request, entry, BLOCK, offer):
                    self.by_mqtt.append(request)
                    for block in self.build.answers(request):
                        self.fetcher.block(block, now)
            try:
                self.fetcher.block(self.arrived.get(timeout=0.02), now)
            except queue.Empty:
                now += 0.5
        raise AssertionError(f"not done: {self.fetcher.fraction:.0%}")


@pytest.fixture
def build(random_build: Make) -> RandomBuild:
    return random_build((300_000, 5))


@pytest.fixture
def web(build: RandomBuild) -> Iterator[Web]:
    made = Web(build)
    yield made
    made.close()


@pytest.fixture
def device(build: RandomBuild, web: Web, tmp_path: Path, store: Store) -> Iterator[Device]:
    made = Device(build, build.fetcher(tmp_path, store), web.url)
    yield made
    made.web.stop()


def test_all_comes_by_https_and_each_byte_once(device: Device, web: Web) -> None:
    device.go_on(until=lambda: device.fetcher.done)
    assert device.by_mqtt == []
    assert device.fetcher.progress.bytes == sum(map(len, web.files.values()))
    spans = [tuple(map(int, wanted.removeprefix("bytes=").split("-"))) for _, wanted, _ in web.asked]
    assert sum(last + 1 - first for first, last in spans) == device.fetcher.progress.bytes
    assert {ticket for _, _, ticket in web.asked} == {"Bearer ticket"}


def test_what_came_by_mqtt_is_not_fetched_again(device: Device, web: Web) -> None:
    fetcher = device.fetcher
    device.go_on(until=lambda: fetcher.progress.blocks >= 30, offer=Offer())
    by_mqtt = fetcher.progress.bytes
    device.go_on(until=lambda: fetcher.done)
    fetched = sum(
        last + 1 - first
        for _, wanted, _ in web.asked
        for first, last in [tuple(map(int, wanted.removeprefix("bytes=").split("-")))]
    )
    assert web.asked
    # Up to three requests that MQTT has answered in part may be asked for once more.
    assert fetched <= sum(map(len, web.files.values())) - by_mqtt + 3 * 16 * BLOCK


def _too_long(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {**headers, "Content-Length": str(len(body) + 1000)}, body + bytes(1000)


def _cut(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {**headers, "Connection": "close"}, body[: len(body) // 2]


def _elsewhere(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {**headers, "Content-Range": "bytes 0-1/2"}, body


def _refused(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    del status, headers, body
    return 401, {"Content-Length": "0"}, b""


def _moved(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    del status, headers, body
    return 302, {"Content-Length": "0", "Location": "http://127.0.0.1:1/"}, b""


@pytest.mark.parametrize("spoil", [_too_long, _cut, _elsewhere, _refused, _moved])
def test_an_answer_that_is_not_what_was_asked_for_sends_the_device_to_mqtt(
    device: Device, web: Web, spoil: Callable[..., Any]
) -> None:
    web.spoil = spoil
    device.go_on(until=lambda: device.fetcher.done)
    assert device.by_mqtt
    assert device.fetcher.progress.bytes == sum(map(len, web.files.values()))


def test_false_bytes_are_not_kept(device: Device, web: Web) -> None:
    device.go_on(until=lambda: device.fetcher.progress.blocks >= 1)  # the block table
    web.spoil = lambda status, headers, body: (
        (status, headers, bytes(len(body)))
        if len(web.asked) < 4
        else (
            status,
            headers,
            body,
        )
    )
    device.go_on(until=lambda: device.fetcher.done)
    assert device.fetcher.progress.bad
    assert device.fetcher.progress.bytes == sum(map(len, web.files.values()))


def test_a_ticket_is_for_the_devices_own_server_alone(
    build: RandomBuild, web: Web, tmp_path: Path, store: Store
) -> None:
    device = Device(build, build.fetcher(tmp_path, store), "https://fleet.example:8443")
    try:
        offer = Offer(url=f"{web.url}/x/{{sha256}}", token="ticket")
        device.go_on(until=lambda: device.fetcher.done, offer=offer)
    finally:
        device.web.stop()
    assert {ticket for _, _, ticket in web.asked} == {""}


@pytest.mark.parametrize("url", ["file:///etc/{sha256}", "ftp://h/{sha256}", "https:///{sha256}"])
def test_other_addresses_are_not_asked(device: Device, build: RandomBuild, url: str) -> None:
    request = BlockRequest(build=build.digest, file=1, base=0, bitmap=1)
    assert not device.web.ask(request, build.manifest.files[0], BLOCK, Offer(url=url))
