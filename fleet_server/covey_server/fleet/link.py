"""The server's own MQTT sessions: one hears the devices, one speaks to them. Handlers only decode and queue; the work is done by others.

They are two so that ten thousand devices that speak at once hold up no order: what is heard may have to wait until it can be
stored, and a session's acknowledgements come behind all that it hears. They reconnect for ever. What cannot be sent now is not kept: reconciliation sends again what still matters.
"""

from __future__ import annotations

import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from covey_contract import topics
from covey_contract.enrolment import Broker as BrokerAddress
from covey_contract.enrolment import RenewRequest
from covey_contract.errors import ContractError
from covey_contract.messages import BlockRequest, MetadataRequest, TimeRequest
from covey_server.clock import Clock
from covey_server.fleet.ca import SENDER_USER, SERVER_USER, KeyPair
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming, read

log = logging.getLogger(__name__)

_KEEPALIVE_S = 30
_MAX_UNSENT = 20_000
# Orders that the broker has not acknowledged yet; nothing comes of waiting for it.
_MAX_INFLIGHT = 20_000
# While the queue is full the broker holds messages back for us; after this long one is dropped, and its device repeats it.
_FULL_QUEUE_PATIENCE_S = 5.0
_LOG_EVERY = 1000


class _ClosedOnFailure(ssl.SSLSocket):
    """paho leaves a socket whose handshake fails to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class FleetLink:
    """`on_up` is called from the network thread on each connect; it must return at once."""

    def __init__(
        self,
        address: BrokerAddress,
        ca: Path,
        listener: KeyPair,
        sender: KeyPair,
        clock: Clock,
        counters: Counters,
        messages: queue.Queue[Incoming],
        block_requests: queue.Queue[Incoming],
        on_up: Callable[[], None],
        questions: queue.Queue[Incoming] | None = None,
        renewals: queue.Queue[Incoming] | None = None,
    ) -> None:
        self._address = address
        self._ca = ca
        self._clock = clock
        self._counters = counters
        self._messages = messages
        self._block_requests = block_requests
        self._on_up = on_up
        self._questions: queue.Queue[Incoming] = queue.Queue(1) if questions is None else questions
        self._renewals: queue.Queue[Incoming] = queue.Queue(1) if renewals is None else renewals
        self._listener = self._session(SERVER_USER, listener)
        self._listener.on_connect = self._listening
        self._listener.on_subscribe = self._on_subscribed
        self._listener.on_message = self._received
        self._sender = self._session(SENDER_USER, sender)
        self._sender.on_connect = self._speaking
        self._subscribed = threading.Event()
        self._can_send = threading.Event()
        self._stopping = threading.Event()

    def _session(self, user: str, identity: KeyPair) -> mqtt.Client:
        # What is said while nobody listens is kept; there is nothing to be kept for the sender.
        keeps = user == SERVER_USER
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=user, clean_session=not keeps, protocol=mqtt.MQTTv311
        )
        if self._address.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(self._ca)
            context.load_cert_chain(identity.certificate, identity.key)
            context.sslsocket_class = _ClosedOnFailure
            client.tls_set_context(context)
        else:
            client.username_pw_set(user)
        client.max_inflight_messages_set(_MAX_INFLIGHT)
        client.max_queued_messages_set(_MAX_UNSENT)
        client.reconnect_delay_set(min_delay=1, max_delay=5)
        client.on_disconnect = self._disconnected
        return client

    def start(self) -> None:
        """Begins to connect and returns; see `wait_connected`."""
        for client in (self._sender, self._listener):
            client.connect_async(self._address.host, self._address.port, _KEEPALIVE_S)
            client.loop_start()

    def stop(self) -> None:
        self._stopping.set()
        self._subscribed.clear()
        self._can_send.clear()
        for client in (self._listener, self._sender):
            client.disconnect()
            client.loop_stop()

    @property
    def connected(self) -> bool:
        return self._subscribed.is_set() and self._can_send.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        return self._subscribed.wait(timeout_s) and self._can_send.wait(max(deadline - time.monotonic(), 0.0))

    def send(self, device: str, what: topics.Down, payload: bytes, qos: int = 1) -> mqtt.MQTTMessageInfo | None:
        """Hand the message to the network thread; None if there is no session to hand it to."""
        return self.publish(topics.down(device, what), payload, qos)

    def publish(self, topic: str, payload: bytes, qos: int) -> mqtt.MQTTMessageInfo | None:
        """As `send`, on any topic."""
        if not self._can_send.is_set():
            return None
        info = self._sender.publish(topic, payload, qos=qos)
        return info if info.rc == mqtt.MQTT_ERR_SUCCESS else None

    def _listening(
        self, client: mqtt.Client, _data: object, _flags: mqtt.ConnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        if code.is_failure:
            log.error("the broker refuses the server: %s", code)
            return
        # Most of what is said is telemetry, which devices keep until it is acknowledged and say again. The broker holds it for a busy server
        # by count; what comes at QoS 1 it holds by bytes, and those are few, since every device may cost as many.
        client.subscribe([(topics.up_filter(what), 0 if what is topics.Up.TELEMETRY else 1) for what in topics.Up])

    def _speaking(
        self, _client: mqtt.Client, _data: object, _flags: mqtt.ConnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        if code.is_failure:
            log.error("the broker refuses the server's session for orders: %s", code)
            return
        self._can_send.set()
        self._on_up()

    def _on_subscribed(
        self, _client: mqtt.Client, _data: object, _mid: int, codes: list[ReasonCode], _p: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            log.error("the broker does not let the server hear its devices: %s", codes)
            return
        self._subscribed.set()
        log.info("connected to the broker at %s:%d", self._address.host, self._address.port)

    def _disconnected(
        self, client: mqtt.Client, _data: object, _flags: mqtt.DisconnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        (self._subscribed if client is self._listener else self._can_send).clear()
        if not self._stopping.is_set():
            log.warning("the connection to the broker is lost (%s); connecting again", code)

    def _received(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            # paho decodes the topic lazily; it may hold bytes that are no UTF-8.
            incoming = read(message.topic, bytes(message.payload), self._clock())
        except (ContractError, UnicodeDecodeError) as error:
            self._refuse(type(error).__name__, str(error))
            return
        kind = type(incoming.message).__name__
        self._counters.add("covey_messages_total", kind=kind)
        try:
            if isinstance(incoming.message, BlockRequest):
                self._block_requests.put_nowait(incoming)  # devices ask again
            elif isinstance(incoming.message, (TimeRequest, MetadataRequest)):
                self._questions.put_nowait(incoming)  # likewise
            elif isinstance(incoming.message, RenewRequest):
                self._renewals.put_nowait(incoming)  # likewise
            else:
                self._messages.put(incoming, timeout=_FULL_QUEUE_PATIENCE_S)
        except queue.Full:
            self._refuse("queue_full", f"no room for a {kind} of {incoming.device}")

    def _refuse(self, reason: str, detail: str) -> None:
        self._counters.add("covey_messages_refused_total", reason=reason)
        if self._counters.value("covey_messages_refused_total", reason=reason) % _LOG_EVERY == 1:
            log.warning("dropped a message of a device: %s (logged once in %d)", detail[:300], _LOG_EVERY)
