"""The socket that the server answers on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from covey_server.serving import _listening
from covey_server.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_no_answer_waits_for_an_acknowledgement(tmp_path: Path) -> None:
    """asyncio sets TCP_NODELAY only on connections of sockets that it made itself."""
    with (
        _listening(Settings(data=tmp_path, listen="127.0.0.1:0")) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
