"""What a device process tells the rig while it runs. Each message is gone before the process goes on, so none is lost with it.

The rig is what outlives a kill: it is the server, which has every record that was sent, and the gateway, which goes on serving.
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec

from covey_agent.gateway.control_api import Reverted
from covey_agent.gateway.slots import Slots
from covey_contract.lifecycle import State
from covey_contract.topics import Up

MAX_BYTES = 1 << 16


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The process waits to be let go; a tracer may be attached until then."""

    pid: int


class Adding(msgspec.Struct, frozen=True, tag=True):
    """A record is about to be spooled. `key`: of what it says, without its number."""

    key: str
    kind: Up


class Added(msgspec.Struct, frozen=True, tag=True):
    """The disk has it."""

    key: str


class Sent(msgspec.Struct, frozen=True, tag=True):
    """The server has a record; or a hello or a renewal's request (`seq` 0)."""

    kind: Up
    seq: int
    key: str
    body: msgspec.Raw


class Written(msgspec.Struct, frozen=True, tag=True):
    """The book is stored: it may never be older than this again. `state`: of the model's deployment."""

    generation: int
    counter: int
    state: State | None = None


class Served(msgspec.Struct, frozen=True, tag=True):
    """What the gateway holds now."""

    models: dict[str, Slots]
    reverted: dict[str, Reverted] = {}


class Trouble(msgspec.Struct, frozen=True, tag=True):
    """An invariant is broken, or an error has come where none may come."""

    what: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Told by the parent: how the process ended. `settled`: it did all that it was to do."""

    status: int


class Lost(msgspec.Struct, frozen=True, tag=True):
    """By the rig: the gateway is gone too."""


class Settled(msgspec.Struct, frozen=True, tag=True):
    """The device is where it should be; `now` is its time."""

    now: float


class Down(msgspec.Struct, frozen=True, tag=True):
    """The agent could not start, and said so in one line; a service manager starts it again."""

    why: str


Entry = Ready | Adding | Added | Sent | Written | Served | Trouble | Ended | Lost | Settled | Down

_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Journal:
    """One end of a pair of SOCK_SEQPACKET sockets: a message is a packet."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def pair(cls) -> tuple[Journal, Journal]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, entry: Any) -> None:
        self._socket.send(msgspec.json.encode(entry))

    def hear(self, timeout_s: float | None = None) -> Entry:
        """Raises `TimeoutError`, or `EOFError` when the other end is gone."""
        self._socket.settimeout(timeout_s)
        packet = self._socket.recv(MAX_BYTES)
        if not packet:
            raise EOFError("the device's process is gone")
        return _decoder.decode(packet)

    def go(self) -> None:
        """Let the other end go on."""
        self._socket.send(b"go")

    def wait(self) -> None:
        self._socket.recv(MAX_BYTES)

    def close(self) -> None:
        self._socket.close()
