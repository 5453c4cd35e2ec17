"""What people at the device ask of the running agent: files in `asks/`, each with its answer beside it.

`covey-agent` writes `ID.json`, the control loop answers in `ID.answer` when it next looks round, at most two seconds later. Whoever may
write there may do this: the folder is the agent's own.

Nothing is done twice, and nothing silently: an ask becomes `ID.taken`, durably, before it is followed, and that goes when the answer
lies there. One that a start finds taken was cut off by the end of the agent, and is answered so.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from covey_agent import durable
from covey_agent.errors import AgentError
from covey_contract.manifest import ModelName

log = logging.getLogger(__name__)

FOLDER = "asks"
_MAX_BYTES = 4096
_MOST_AT_ONCE = 16
_FORGOTTEN_S = 600.0
_POLL_S = 0.05
_TAKEN = ".taken"
INTERRUPTED = (
    "the agent ended while it did this, and does not do it again by itself: see `covey-agent status`, then ask anew"
)


class GoBack(msgspec.Struct, frozen=True, tag=True):
    """Let the build before serve again."""

    model: ModelName


class Pin(msgspec.Struct, frozen=True, tag=True):
    """Follow no orders for the model until it is unpinned."""

    model: ModelName
    why: str = ""


class Unpin(msgspec.Struct, frozen=True, tag=True):
    model: ModelName


class Install(msgspec.Struct, frozen=True, tag=True):
    """Follow the order for the model that is in a bundle. `path` as the agent sees it."""

    model: ModelName
    path: str


Ask = GoBack | Pin | Unpin | Install


class Answer(msgspec.Struct, frozen=True):
    """`words` for people; `done` False: nothing has changed, and `words` say why."""

    done: bool
    words: str


_ask = msgspec.json.Decoder(Ask)
_answer = msgspec.json.Decoder(Answer)


class AskFolder:
    """The agent's side. `obey` does what is asked, and never raises."""

    def __init__(self, state: Path, obey: Callable[[Ask], Answer]) -> None:
        self._folder = state / FOLDER
        self._obey = obey
        self._unsaid: dict[str, Answer] = {}  # what was done, and the disk did not take the answer

    def look(self, now_s: float) -> None:
        """Answer what lies there; `now_s` is Unix time, by which answers that nobody fetched, and what kills have left, are removed. Never raises."""
        try:
            for taken in self._folder.glob(f"*{_TAKEN}"):
                self._left(taken)
            for path in sorted(self._folder.glob("*.json"))[:_MOST_AT_ONCE]:
                self._answer_one(path)
            for path in (*self._folder.glob("*.answer"), *self._folder.glob(f".*{durable.TEMPORARY}")):
                if abs(now_s - path.stat().st_mtime) > _FORGOTTEN_S:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s/ cannot be looked at: %s", FOLDER, error)

    def _answer_one(self, path: Path) -> None:
        """Raises `OSError`; then nothing was done and the ask lies there still, or what was done is answered later."""
        ask: Ask | None = None
        try:
            with path.open("rb") as file:
                ask = _ask.decode(file.read(_MAX_BYTES + 1))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            answer = Answer(False, f"this cannot be read: {error}")
        taken = self._take(path)
        if ask is not None:
            log.info("asked at the device: %s", ask)
            answer = self._obey(ask)
        self._unsaid[taken.stem] = answer
        self._say(taken, answer)

    def _take(self, path: Path) -> Path:
        """Durably: no power cut brings it back once it is being followed. Raises `OSError`, and then it is not taken, if that can be undone."""
        taken = path.with_suffix(_TAKEN)
        path.replace(taken)
        try:
            durable.sync_folder(self._folder)
        except OSError:
            taken.replace(path)
            raise
        return taken

    def _left(self, taken: Path) -> None:
        """Taken up before this look, by this agent or the one before it. Raises `OSError`."""
        if (answer := self._unsaid.get(taken.stem)) is not None:
            self._say(taken, answer)
        elif taken.with_suffix(".answer").exists():  # the end came after the answer
            taken.unlink(missing_ok=True)
        else:
            log.warning("an ask was cut off by the end of the agent: %s", taken.name)
            self._say(taken, Answer(False, INTERRUPTED))

    def _say(self, taken: Path, answer: Answer) -> None:
        """Raises `OSError`; it is tried again at the next look."""
        durable.write(taken.with_suffix(".answer"), msgspec.json.encode(answer))
        taken.unlink(missing_ok=True)
        self._unsaid.pop(taken.stem, None)


def ask_agent(state: Path, ask: Ask, timeout_s: float = 20.0) -> Answer:
    """The agent's answer; raises `AgentError` if there is none."""
    name = uuid.uuid4().hex
    path = state / FOLDER / f"{name}.json"
    reply = path.with_suffix(".answer")
    try:
        durable.write(path, msgspec.json.encode(ask))
    except OSError as error:
        raise AgentError(f"the agent on {state} cannot be asked: {error.strerror}") from error
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            answer = _answer.decode(reply.read_bytes())
            reply.unlink(missing_ok=True)
            return answer
        time.sleep(_POLL_S)
    try:
        path.unlink()
        words = "has not taken this up"
    except OSError:
        words = "has taken this up, and has not answered"
    raise AgentError(f"the agent on {state} {words} within {timeout_s:.0f} s")
