"""The server's side in a process of its own, so that its CPU time can be told: the link, the delivery, a database, nothing else.

`python -m benchmarks.delivery.serving FOLDER`, with `site.json` in the folder. Commands come a line each on the standard input, and
each is answered by a line of JSON: `broadcast N` begins one for N devices, `push N` sends every block to each of N devices, `sent` says
how many bytes have left.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

import msgspec

from covey_contract import topics
from covey_contract.blocks import encode_block
from covey_contract.enrolment import Broker as BrokerAddress
from covey_contract.manifest import Manifest, block_count
from covey_contract.wire import decode
from covey_server.clock import system_clock
from covey_server.db.engine import Database
from covey_server.fleet.broadcasts import BroadcastLimits, Broadcasts
from covey_server.fleet.ca import KeyPair
from covey_server.fleet.counters import Counters
from covey_server.fleet.delivery import Delivery, DeliveryLimits, Sending
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.link import FleetLink
from covey_server.registry.blobs import BlobStore

_IN_FLIGHT = 128
_RATE = 1e9  # of answers to requests: what the machine gives


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What the benchmark tells the serving process."""

    port: int  # of the broker
    database: str
    build: str
    bytes_per_s: float  # of a broadcast
    gather_s: float


class Serving:
    """Use `start`, then `obey` each command, then `stop`."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._site = site
        self.counters = Counters()
        self._blobs = BlobStore(folder / "blobs")
        self._database = Database(site.database)
        self._messages: queue.Queue[Incoming] = queue.Queue(20_000)
        self._requests: queue.Queue[Incoming] = queue.Queue(4_000)
        nothing = Path(os.devnull)
        self._link = FleetLink(
            BrokerAddress(host="127.0.0.1", port=site.port, tls=False),
            nothing,
            KeyPair(nothing, nothing),
            KeyPair(nothing, nothing),
            system_clock,
            self.counters,
            self._messages,
            self._requests,
            lambda: None,
        )
        self._delivery = Delivery(
            *(self._database, self._blobs, self.counters, self._requests, self._send),
            DeliveryLimits(_RATE, _RATE),
            broadcasts=Broadcasts(BroadcastLimits(bytes_per_s=site.bytes_per_s, gather_s=site.gather_s)),
            send_all=self._link.publish,
        )
        self._manifest = decode(Manifest, (folder / "manifest.json").read_bytes())

    def start(self) -> None:
        self._delivery.start()
        self._link.start()
        if not self._link.wait_connected(15.0):
            raise RuntimeError("the broker does not let the server in")

    def stop(self) -> None:
        self._link.stop()
        self._delivery.stop()
        self._database.close()

    def obey(self, words: list[str]) -> dict[str, object]:
        match words:
            case ["broadcast", number]:
                return {"broadcast": self._delivery.ordered(self._site.build, int(number))}
            case ["push", number]:
                threading.Thread(target=self._push, args=(int(number),), daemon=True).start()
                return {}
            case _:
                return {"bytes": self.counters.value("covey_delivery_bytes_total")}

    def _send(self, device: str, payload: bytes) -> Sending | None:
        return self._link.send(device, topics.Down.BLOCK, payload, qos=0)

    def _push(self, devices: int) -> None:
        """What a server does that knows of no broadcast: every block to every device, to each at the rate of a broadcast."""
        sending: list[Sending] = []
        due = time.monotonic()
        for file, entry in enumerate(self._manifest.wire_files()):
            size = self._manifest.block_size
            with self._blobs.open(entry.sha256) as blob:
                for index in range(block_count(entry.size, size)):
                    data = blob.read(size)
                    time.sleep(max(due - time.monotonic(), 0.0))
                    due += len(data) / self._site.bytes_per_s
                    payload = encode_block(self._site.build, file, index, data)
                    for device in range(devices):
                        sending.append(self._sent(f"d-{device:04}", payload))
                        self.counters.add("covey_delivery_bytes_total", len(data), build=self._site.build)
                        if len(sending) > _IN_FLIGHT:
                            sending.pop(0).wait_for_publish(30.0)

    def _sent(self, device: str, payload: bytes) -> Sending:
        """Once the link takes it: nobody asks again for what is left out."""
        while (sent := self._link.send(device, topics.Down.BLOCK, payload, qos=1)) is None:
            time.sleep(0.01)
        return sent


def main() -> int:
    folder = Path(sys.argv[1])
    serving = Serving(folder, msgspec.json.decode((folder / "site.json").read_bytes(), type=Site))
    serving.start()
    try:
        print(json.dumps({"ready": time.time()}), flush=True)  # noqa: T201 - the parent reads it
        for line in sys.stdin:
            print(json.dumps(serving.obey(line.split())), flush=True)  # noqa: T201
    finally:
        serving.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
