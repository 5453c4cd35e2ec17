"""A broker for trying Covey out where mosquitto is not to be had: amqtt in a thread of this process, on loopback only.

No TLS and no proof of who a device is; it loses unacknowledged messages on reconnects. Announced loudly.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from covey_contract.enrolment import Broker as BrokerAddress
from covey_server.errors import StartError
from covey_server.fleet.broker import Revocations, kept_port

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_START_S = 10.0


class TrialBroker:
    """amqtt, imported only when it is started."""

    what = "amqtt on loopback, without TLS, for trying out only"

    def __init__(self, folder: Path, configured_port: int | None) -> None:
        self._folder = folder
        self._configured_port = configured_port
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._problem: str | None = None
        self._stop: asyncio.Event | None = None

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress(host=_HOST, port=self._port, tls=False)

    @property
    def own_address(self) -> BrokerAddress:
        return self.address

    def start(self, revocations: Revocations) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = kept_port(self._folder, _HOST, self._configured_port)
        self._started.clear()
        self._thread = threading.Thread(target=self._run, name="covey-broker", daemon=True)
        self._thread.start()
        if not self._started.wait(_START_S) or self._problem is not None:
            raise StartError(
                f"no broker: install mosquitto (Debian, Ubuntu: apt install mosquitto); amqtt, for trying out, does not "
                f"start either: {self._problem or 'no answer'}"
            )
        log.warning(
            "mosquitto is not installed: devices talk to a TRIAL broker (amqtt) on %s:%d, without TLS and without proof "
            "of who they are, on this machine only. Install mosquitto for anything but trying out.",
            _HOST,
            self._port,
        )
        self.apply(revocations)

    def apply(self, revocations: Revocations) -> None:
        from covey_server.fleet import amqtt_rules

        amqtt_rules.cut_off.clear()
        amqtt_rules.cut_off.update(revocations.devices)

    def healthy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(10.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # the seam to a third-party broker
            self._problem = str(error) or type(error).__name__
            if self._started.is_set():  # before that, `start` tells it
                log.exception("the trial broker failed")
            self._started.set()

    async def _serve(self) -> None:
        from amqtt.broker import Broker

        logging.getLogger("amqtt").setLevel(logging.WARNING)
        logging.getLogger("transitions").setLevel(logging.WARNING)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        rules = "covey_server.fleet.amqtt_rules"
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{self._port}"}},
                "plugins": {f"{rules}.KnownNames": {}, f"{rules}.OwnTopics": {}},
            }
        )
        await broker.start()
        self._started.set()
        await self._stop.wait()
        await broker.shutdown()
