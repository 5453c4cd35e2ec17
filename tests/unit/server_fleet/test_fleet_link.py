"""The server's MQTT sessions with a broker that ends in the middle of a handshake, and ports for brokers."""

from __future__ import annotations

import gc
import queue
import socket
import threading
import time
from pathlib import Path

from covey_contract.enrolment import Broker
from covey_server.fleet.ca import FleetCA
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.link import FleetLink
from covey_server.fleet.ports import free_port, port_is_free


def test_handshakes_that_fail_leave_no_socket_behind(tmp_path: Path) -> None:
    """A socket left behind warns when it is collected, and a warning is an error here."""
    now = int(time.time() * 1000)
    ca = FleetCA.load_or_create(tmp_path, now)
    messages: queue.Queue[Incoming] = queue.Queue(1)
    gone = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def hang_up() -> None:
            while True:
                connection, _ = listener.accept()
                connection.close()
                if ended.is_set():
                    return
                gone.release()

        broker = threading.Thread(target=hang_up, daemon=True)
        broker.start()
        port = listener.getsockname()[1]
        link = FleetLink(
            Broker(host="127.0.0.1", port=port, tls=True),
            ca.ca_path,
            ca.listener_certificate(now),
            ca.sender_certificate(now),
            lambda: now,
            Counters(),
            messages,
            messages,
            lambda: None,
        )
        link.start()
        tries = [gone.acquire(timeout=20) for _ in range(4)]
        link.stop()
        ended.set()
        socket.create_connection(("127.0.0.1", port)).close()
        broker.join()
    assert all(tries)
    assert not link.connected
    gc.collect()


def test_a_free_port_is_none_that_connections_are_given() -> None:
    begins = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(50):
        port = free_port()
        assert port < begins
        assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
