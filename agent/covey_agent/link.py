"""The device's MQTT session (3.1.1 over mutual TLS): connects, reconnects, and hands every message to the control loop.

Its callbacks run in paho's thread and only put into the inbox; an inbox that is full drops (a block is asked for again, an order is sent
again). The session is clean: nothing depends on what a broker remembers.

While a new certificate is on trial, it is shown first, and after each failure the other one: whichever the broker takes.
"""

from __future__ import annotations

import contextlib
import logging
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from covey_agent.credentials import Credentials
from covey_agent.identity import CA
from covey_contract.enrolment import Broker
from covey_contract.messages import Status
from covey_contract.topics import Up, broadcast_filter, down_filter, up
from covey_contract.wire import Message, encode

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is up and subscribed. `trial`: with the certificate on trial; `refused`: without, after it was tried."""

    trial: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session is gone; the link connects again by itself."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message from the server; nothing about it is checked."""

    topic: str
    payload: bytes


LinkEvent = Connected | Disconnected | Arrived


class Link:
    """`start` opens the session, `close` ends it with a last status. `offer` takes an event, or says that it cannot."""

    def __init__(
        self,
        device: str,
        broker: Broker,
        identity: Path,
        offer: Callable[[LinkEvent], bool],
        *,
        boot_id: str,
        draw: random.Random,
    ) -> None:
        self._device = device
        self._broker = broker
        self._identity = identity
        self._offer = offer
        self._boot_id = boot_id
        self._draw = draw
        self._credentials = Credentials(identity)
        self._client: Client | None = None
        self._context: ssl.SSLContext | None = None
        self._up = False
        self._on_trial = False  # what the session shows, or tries to
        self._skip_trial = False  # for one attempt
        self._tried = False  # the certificate on trial, in vain
        self._failures = 0
        self._last_line = ""
        self._heard: set[str] = set()  # filters of broadcasts
        self.dropped = 0

    @property
    def address(self) -> str:
        return f"{self._broker.host}:{self._broker.port}"

    def start(self) -> None:
        """Begin to connect; returns at once. Raises `OSError` or `ssl.SSLError` if the identity's files cannot be used."""
        context = tls_context(self._identity) if self._broker.tls else None
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
        )
        if context is not None:
            # No user name: the certificate says who we are, and RabbitMQ would want a password for it.
            client.tls_set_context(context)
        else:
            client.username_pw_set(self._device)
        will = encode(Status(boot_id=self._boot_id, online=False))
        client.will_set(up(self._device, Up.STATUS), will, qos=1)
        client.max_inflight_messages_set(50)
        client.max_queued_messages_set(200)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client, self._context = client, context
        self._up = self._skip_trial = self._tried = False
        self._back_off()
        client.connect_async(self._broker.host, self._broker.port, keepalive=KEEPALIVE_S)
        client.loop_start()

    def renew(self) -> None:
        """Connect anew, with the certificate on trial. No end is told; what was not acknowledged is said again. Raises as `start`, and the
        session stays as it is then."""
        if self._broker.tls:
            tls_context(self._identity)
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
        self._failures = 0
        self.start()

    def close(self) -> None:
        if self._client is None:
            return
        if self._client.is_connected():
            farewell = encode(Status(boot_id=self._boot_id, online=False))
            with contextlib.suppress(ValueError, RuntimeError):  # gone in this very moment
                self._client.publish(up(self._device, Up.STATUS), farewell, qos=1).wait_for_publish(2.0)
        self._client.disconnect()
        self._client.loop_stop()
        self._client = None

    def send(self, what: Up, message: Message, qos: int = 1) -> bool:
        """Whether the message is on its way. Raises `TooLargeError`."""
        return self.send_bytes(what, encode(message), qos)

    def send_bytes(self, what: Up, body: bytes, qos: int = 1) -> bool:
        if self._client is None or not self._client.is_connected():
            return False
        return self._client.publish(up(self._device, what), body, qos=qos).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def listen(self, build: str, on: bool) -> None:
        """Begin or end to hear what is broadcast of a build; it holds over reconnects."""
        topic = broadcast_filter(build)
        # Replaced as a whole: paho's thread reads it.
        self._heard = self._heard | {topic} if on else self._heard - {topic}
        if self._client is not None and self._client.is_connected():
            if on:
                self._client.subscribe(topic, qos=1)
            else:
                self._client.unsubscribe(topic)

    # --- in paho's thread ---------------------------------------------------------------------------------------

    def _on_pre_connect(self, client: Client, _data: object) -> None:
        del client
        if self._context is None:
            return
        try:
            self._on_trial = self._credentials.load_into(self._context, trial=not self._skip_trial)
        except OSError as error:
            self._say(f"the certificate cannot be read: {error}; the one before is shown")

    def _failed(self) -> None:
        """No session came of the attempt: the next one shows the other certificate, where there are two."""
        self._failures += 1
        self._tried = self._tried or self._on_trial
        self._skip_trial = self._on_trial

    def _on_connect(
        self, client: Client, _data: object, _flags: ConnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._say(f"the broker at {self.address} refuses this device: {code}; trying again")
            self._back_off()
            return
        self._failures = 0
        self._last_line = ""
        self._back_off()
        client.subscribe([(topic, 1) for topic in (down_filter(self._device), *self._heard)])
        log.info("connected to %s", self.address)
        self._offer(Connected(self._on_trial, self._tried and not self._on_trial))
        self._up, self._skip_trial, self._tried = True, False, False

    def _on_connect_fail(self, client: Client, _data: object) -> None:
        del client
        self._failed()
        self._say(f"the broker at {self.address} cannot be reached; trying again")
        self._back_off()

    def _on_disconnect(
        self,
        client: Client,
        _data: object,
        _flags: DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        del client
        if self._up:
            self._failures += 1
        else:
            self._failed()
        self._up = False
        if code.is_failure:
            self._say(f"disconnected from {self.address}: {code}; trying again")
        self._back_off()
        self._offer(Disconnected())

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        del client
        if not self._offer(Arrived(message.topic, bytes(message.payload))):
            self.dropped += 1

    def _back_off(self) -> None:
        """Full jitter, doubling: a fleet that lost its broker does not come back as one."""
        most = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 10))
        delay = self._draw.uniform(0.3, 1.0) * most
        if self._client is not None:
            self._client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]  # it takes fractions

    def _say(self, line: str) -> None:
        """Once for each new trouble, not for each try."""
        if line != self._last_line:
            log.warning("%s", line)
            self._last_line = line


def tls_context(identity: Path) -> ssl.SSLContext:
    """Mutual TLS: the fleet's CA alone is trusted, the broker's name is checked."""
    pair = Credentials(identity).in_use
    pair.prepare()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(identity / CA)
    pair.load_into(context)
    return context
