"""`covey-agent grpc`: the door's composition root. Everything that is waited for or kept has a bound."""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from covey_agent.errors import AgentError
from covey_agent.grpc_door.backend import Gateway
from covey_agent.grpc_door.service import InferenceService

log = logging.getLogger(__name__)

# As many as wait for one model at most, and of those that are asked at once.
_CALLS, _THREADS = 64, 8
_MESSAGE_BYTES = 64 << 20  # as the gateway's own limit of a body
_DRAIN_S = 5.0


def run(socket: Path, address: str, port: int) -> None:
    """Until SIGTERM or SIGINT. `socket`: the gateway's for inferences. Raises `AgentError`."""
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        maximum_concurrent_rpcs=_CALLS,
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    server.add_generic_rpc_handlers((InferenceService(Gateway(socket)).handlers(),))
    try:
        bound = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError as error:
        raise AgentError(f"port {port} on {address} cannot be used") from error
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server.start()
    log.info("gRPC on %s:%d, for the gateway at %s", address, bound, socket)
    ended.wait()
    server.stop(_DRAIN_S).wait()
