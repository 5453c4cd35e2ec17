"""What people at the device decide: going back without a network, and staying with what serves."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from covey_agent.asks import INTERRUPTED, Answer, Ask, AskFolder, GoBack, Pin, Unpin, ask_agent
from covey_agent.errors import AgentError
from covey_agent.manual import Manual
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]


def obey(world: World, ask: GoBack | Pin | Unpin) -> Answer:
    return Manual(world.book, world.serving, world.clock, world.deployments.tell).obey(ask)


@pytest.fixture
def two_builds(world: World, random_build: Make) -> tuple[RandomBuild, RandomBuild]:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    world.newest = None  # the network is gone
    world.reports.clear()
    return one, two


def test_going_back_needs_no_network_and_is_told(world: World, two_builds: tuple[RandomBuild, RandomBuild]) -> None:
    one, _ = two_builds
    assert obey(world, GoBack("m")) == Answer(True, f"m goes back to build {one.digest[:12]}")
    world.run(lambda: world.serving_build == one.digest)
    (report,) = world.reports
    assert (report.state, report.reason, report.previous) == (State.ROLLED_BACK, Reason.OPERATOR, one.digest)
    assert world.record.active == one.digest
    # There is only one step back.
    assert obey(world, GoBack("m")) == Answer(False, "there is no build of m before the one that serves")
    # And it stays so over a restart.
    world.gateway.lose_everything()
    world.boot()
    world.run(lambda: world.serving_build == one.digest)


def test_going_back_in_probation(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    assert obey(world, GoBack("m")).done
    assert world.serving_build == one.digest
    assert world.is_in(State.ROLLED_BACK)
    for _ in range(10):
        world.round()
    assert world.serving_build == one.digest


def test_there_is_nothing_to_go_back_from_while_a_build_is_on_its_way(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.mains_power = False
    world.gateway.gone = True
    world.order(two)
    world.run(lambda: world.is_in(State.STAGED))
    answer = obey(world, GoBack("m"))
    assert (answer.done, "does not serve yet: it is staged" in answer.words) == (False, True)


def test_a_pinned_model_refuses_orders_until_it_is_unpinned(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    assert obey(world, Pin("m", "trade fair")).done
    world.order(two)
    world.run(lambda: world.is_in(State.REFUSED))
    assert (world.reports[-1].reason, world.reports[-1].detail) == (Reason.PINNED, "trade fair")
    world.reports.clear()
    world.boot()
    for _ in range(50):
        world.round()
    assert world.serving_build == one.digest
    assert world.reports == []  # told once, not at every look
    assert obey(world, Unpin("m")).done
    world.run(lambda: world.is_settled(two))
    assert obey(world, Unpin("m")) == Answer(True, "m was not pinned")


def test_a_pinned_model_takes_the_order_for_what_it_runs(world: World, random_build: Make) -> None:
    one = random_build((100,), 1, "1")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    assert obey(world, Pin("m")).done
    world.order(one)
    world.run(lambda: world.is_settled(one))


def test_an_unknown_model(world: World) -> None:
    assert obey(world, Pin("nothing")) == Answer(False, "there is no model 'nothing' on this device")


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "asks").mkdir()
    return tmp_path


def test_an_ask_is_answered_once(folder: Path) -> None:
    heard: list[Ask] = []

    def answering(ask: Ask) -> Answer:
        heard.append(ask)
        return Answer(True, "done")

    agent = AskFolder(folder, answering)
    (folder / "asks/1.json").write_bytes(b'{"type":"Pin","model":"m","why":"x"}')
    for _ in range(3):
        agent.look(time.time())
    assert heard == [Pin("m", "x")]
    assert [path.name for path in (folder / "asks").iterdir()] == ["1.answer"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b'{"type":"Erase","model":"m"}', b'{"type":"Pin","model":"../m"}', b"[" * 4000, b" " * 9000],
)
def test_what_cannot_be_read_is_answered_so(folder: Path, content: bytes) -> None:
    def never(ask: Ask) -> Answer:
        raise AssertionError(ask)

    (folder / "asks/1.json").write_bytes(content)
    AskFolder(folder, never).look(time.time())
    assert b'"done":false' in (folder / "asks/1.answer").read_bytes()


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from covey_agent import asks, durable

state, when = Path(sys.argv[1]), sys.argv[2]

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def obey(ask):
    with (state / "done").open("a") as file:
        file.write("x")
    if when == "obeying":
        end()
    return asks.Answer(True, "done")

def write(path, data, mode=0o644):
    if when == "answering":
        end()
    wrote(path, data, mode)
    if when == "answered":
        end()

wrote, durable.write = durable.write, write
if when == "taken":
    durable.sync_folder = lambda folder: end()
asks.AskFolder(state, obey).look(time.time())
"""


@pytest.mark.parametrize(
    ("when", "done", "words"),
    [("taken", 0, INTERRUPTED), ("obeying", 1, INTERRUPTED), ("answering", 1, INTERRUPTED), ("answered", 1, "done")],
)
def test_a_kill_while_an_ask_is_followed(folder: Path, when: str, done: int, words: str) -> None:
    """Never twice, and never without a word."""
    (folder / "asks/1.json").write_bytes(b'{"type":"Pin","model":"m","why":"x"}')
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(folder), when], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    heard: list[Ask] = []

    def again(ask: Ask) -> Answer:
        heard.append(ask)
        return Answer(True, "again")

    agent = AskFolder(folder, again)
    for _ in range(2):
        agent.look(time.time())
    assert heard == []
    assert len((folder / "done").read_text() if done else "") == done
    assert words in (folder / "asks/1.answer").read_text()
    assert [path.name for path in (folder / "asks").iterdir() if path.suffix != ".tmp"] == ["1.answer"]


def test_an_answer_that_the_disk_does_not_take_is_given_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Ask] = []

    def answering(ask: Ask) -> Answer:
        heard.append(ask)
        return Answer(True, "done")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    agent = AskFolder(folder, answering)
    (folder / "asks/1.json").write_bytes(b'{"type":"Unpin","model":"m"}')
    with monkeypatch.context() as disk:
        disk.setattr("covey_agent.durable.write", full)
        agent.look(time.time())
        agent.look(time.time())
    assert [path.name for path in (folder / "asks").iterdir()] == ["1.taken"]
    agent.look(time.time())
    assert heard == [Unpin("m")]
    assert b'"done":true' in (folder / "asks/1.answer").read_bytes()
    assert [path.name for path in (folder / "asks").iterdir()] == ["1.answer"]


def test_an_ask_that_is_taken_up_and_not_answered_is_said_so(folder: Path) -> None:
    def take() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for path in (folder / "asks").glob("*.json"):
                path.rename(path.with_suffix(".taken"))
                return
            time.sleep(0.01)

    taker = threading.Thread(target=take)
    taker.start()
    with pytest.raises(AgentError, match="has taken this up"):
        ask_agent(folder, GoBack("m"), timeout_s=1.0)
    taker.join(20)


def test_answers_that_nobody_fetches_are_removed(folder: Path) -> None:
    answer = folder / "asks/1.answer"
    answer.write_bytes(b"{}")
    agent = AskFolder(folder, lambda _ask: Answer(True, ""))
    agent.look(answer.stat().st_mtime + 10)
    assert answer.exists()
    agent.look(answer.stat().st_mtime + 601)
    assert not answer.exists()


def test_nobody_answers(folder: Path) -> None:
    with pytest.raises(AgentError, match="has not taken this up"):
        ask_agent(folder, GoBack("m"), timeout_s=0.1)
    assert list((folder / "asks").iterdir()) == []  # it is not done later, behind anybody's back
    with pytest.raises(AgentError, match="cannot be asked"):
        ask_agent(folder / "nowhere", GoBack("m"))
