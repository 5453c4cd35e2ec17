"""The agent's state on disk: `state.json` and a second copy, each with its checksum.

The newer copy that is whole counts. A copy that is damaged (by the disk: a kill or power cut cannot do it) is set aside and
said so; if both are, the agent begins anew, and the server's answer to its hello brings it back to its assignment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from covey_agent import durable
from covey_agent.core.state import AgentState

log = logging.getLogger(__name__)

MAX_STATE_BYTES = 16 << 20
_decoder = msgspec.json.Decoder(AgentState)


class Book:
    """Reads the state once, and writes every change before anybody acts on it."""

    def __init__(self, folder: Path) -> None:
        self.paths = (folder / "state.json", folder / "state.copy.json")
        self.state = AgentState()

    def load(self) -> AgentState:
        """The newest whole copy. Never raises for damaged files; `OSError` if none of them can be read now, since to begin anew would be to
        forget what was promised."""
        copies, trouble = _read_all(self.paths, mend=True)
        if not copies and trouble is not None:
            raise trouble
        self.state = max(copies, key=lambda copy: copy.generation, default=AgentState())
        return self.state

    def change(self, edit: Callable[[AgentState], AgentState]) -> AgentState:
        """Store the edited state durably, then hold it. Raises `OSError`, and then nothing has changed."""
        new = edit(self.state)
        new = msgspec.structs.replace(
            new,
            generation=self.state.generation + 1,
            counter=max(new.counter, self.state.counter),
            time_floor_ms=max(new.time_floor_ms, self.state.time_floor_ms),
        )
        body = msgspec.json.encode(new)
        document = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        durable.write(self.paths[0], document)
        self.state = new
        try:
            durable.write(self.paths[1], document)
        except OSError as error:
            log.warning("the second copy of the state could not be written: %s", error)
        return new


def read_state(folder: Path) -> AgentState:
    """The state as another process may look at it; changes nothing."""
    copies, _ = _read_all(Book(folder).paths, mend=False)
    return max(copies, key=lambda copy: copy.generation, default=AgentState())


def _read_all(paths: Iterable[Path], *, mend: bool) -> tuple[list[AgentState], OSError | None]:
    """The whole copies; and what kept one from being read, if anything did."""
    copies: list[AgentState] = []
    trouble: OSError | None = None
    for path in paths:
        try:
            copy = _read(path, mend=mend)
        except OSError as error:
            log.error("%s cannot be read: %s", path.name, error)
            trouble = error
            continue
        if copy is not None:
            copies.append(copy)
    return copies, trouble


def _read(path: Path, *, mend: bool) -> AgentState | None:
    try:
        with path.open("rb") as file:
            document = file.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return None
    checksum, _, body = document.partition(b"\n")
    try:
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            raise ValueError("its checksum is wrong")
        return _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        log.error("%s is damaged: %s", path.name, error)
        if mend:
            _set_aside(path)
        return None


def _set_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(path.name + ".damaged"))
    except OSError as error:
        log.warning("%s could not be set aside: %s", path.name, error)
