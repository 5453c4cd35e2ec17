"""A build loaded in the place of the one that serves: requests wait and none is lost; there is never memory for two."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from covey_agent.gateway.control_api import Failure, Load, Revert, Settle, Unload
from covey_contract.messages import Probation
from covey_contract.reasons import Reason
from covey_hil.testing.waiting import until
from tests.integration.gateway.beside import Beside

MODEL, SIZE = "scale", 8


def ask(rig: Any, value: float = 1.0) -> float:
    x = np.full((1, SIZE), value, np.float32)
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        tensor = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        return float(client.infer(MODEL, [tensor]).as_numpy("y")[0, 0])


def runners(rig: Any) -> list[psutil.Process]:
    return psutil.Process(rig.status().pid).children()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Watch(Beside):
    """Asks all the time, and counts how many runners live at once."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.gateway = psutil.Process(rig.status().pid)
        self.answers: list[float] = []
        self.failed: list[str] = []
        self.most = 0
        super().__init__(self._ask, self._ask, self._count)

    def _ask(self) -> None:
        while not self.stopped.is_set():
            try:
                self.answers.append(ask(self.rig))
            except InferenceServerException as error:
                self.failed.append(str(error))

    def _count(self) -> None:
        while not self.stopped.wait(0.002):
            self.most = max(self.most, sum(_lives(child) for child in self.gateway.children()))


@pytest.fixture
def rig(rig: Any) -> Any:
    """One whose requests have the patience that a slow machine's loading takes."""
    rig.stop()
    rig.start("--deadline-s", "60", "--queue", "4", "--switch-s", "120")
    return rig


def test_requests_wait_while_runners_change_and_only_one_lives(rig: Any) -> None:
    one, two = rig.build(2.0, "1.0"), rig.build(3.0, "1.1")
    rig.serve(one)
    with Watch(rig) as watch:
        until(lambda: watch.answers, "an answer")
        rig.load(two, in_place=True, background=False)
        rig.switch(two, Probation(seconds=60))
        until(lambda: 3.0 in watch.answers, "an answer of the new build")
    assert watch.failed == []
    assert set(watch.answers) == {2.0, 3.0}
    assert watch.answers.index(3.0) >= watch.answers.count(2.0) - 1  # two callers
    assert watch.most == 1
    slots = rig.slots()
    assert (slots.active, slots.previous, slots.in_probation) == (two.digest, one.digest, True)
    rig.order(Settle(model=MODEL))
    assert rig.slots().previous is None
    assert ask(rig) == 3.0


def test_a_build_that_does_not_load_gives_its_place_back(rig: Any) -> None:
    one, bad = (
        rig.build(2.0, "1.0"),
        rig.build(
            3.0, "1.1", vectors={"in/x": np.ones((1, 1, SIZE), np.float32), "out/y": np.zeros((1, 1, SIZE), np.float32)}
        ),
    )
    rig.serve(one)
    with Watch(rig) as watch:
        answer = rig.order(Load(model=MODEL, build=bad.digest, folder=str(bad.folder), in_place=True, background=False))
        assert isinstance(answer, Failure)
        assert answer.reason is Reason.GOLDEN_MISMATCH
        before = len(watch.answers)
        until(lambda: len(watch.answers) > before, "the old build to answer again")
    assert watch.failed == []
    assert set(watch.answers) == {2.0}
    assert rig.slots().active == one.digest


@pytest.mark.parametrize("how", ["crash", "nan", "order"])
def test_the_way_back_starts_the_old_build_again(rig: Any, how: str) -> None:
    one, two = rig.build(2.0, "1.0"), rig.build(3.0, "1.1", root=True, vectors=None)
    rig.serve(one)
    rig.load(two, in_place=True, background=False)
    rig.switch(two, Probation(seconds=60, max_errors=0))
    assert ask(rig) == pytest.approx(3.0)
    if how == "crash":
        psutil.Process(rig.pid_of(two)).kill()
    elif how == "nan":
        with pytest.raises(InferenceServerException, match="NaN"):
            ask(rig, -1.0)  # there is nobody to answer it
    else:
        rig.order(Revert(model=MODEL, reason=Reason.OPERATOR))
    assert ask(rig) == 2.0
    slots = rig.slots()
    assert (slots.active, slots.previous, slots.in_probation) == (one.digest, None, False)
    if how != "order":
        assert slots.reverted.build == two.digest
        assert slots.reverted.reason is (Reason.RUNNER_CRASHED if how == "crash" else Reason.BAD_OUTPUT)
    assert len(runners(rig)) == 1


def test_a_candidate_that_is_given_up_before_it_serves(rig: Any) -> None:
    one, two = rig.build(2.0, "1.0"), rig.build(3.0, "1.1")
    rig.serve(one)
    rig.load(two, in_place=True, background=False)
    rig.order(Unload(model=MODEL, build=two.digest))
    assert ask(rig) == 2.0


def test_so_many_wait_and_no_more(rig: Any) -> None:
    one, two = rig.build(2.0, "1.0"), rig.build(3.0, "1.1")
    rig.serve(one)
    rig.load(two, in_place=True, background=False)
    outcomes: list[str] = []

    def call() -> None:
        try:
            outcomes.append(str(ask(rig)))
        except InferenceServerException as error:
            outcomes.append(str(error.status()))

    callers = [threading.Thread(target=call) for _ in range(7)]
    for caller in callers:
        caller.start()
    until(lambda: len(outcomes) >= 3, "those beyond the queue to be turned away")
    rig.switch(two)
    for caller in callers:
        caller.join()
    assert sorted(outcomes) == ["3.0"] * 4 + ["429"] * 3


def test_a_build_that_nobody_lets_serve_gives_its_place_back(rig: Any) -> None:
    """Control died between the two."""
    rig.stop()
    rig.start("--deadline-s", "60", "--switch-s", "0.2")
    one, two = rig.build(2.0, "1.0"), rig.build(3.0, "1.1")
    rig.serve(one)
    rig.load(two, in_place=True, background=False)
    assert ask(rig) == 2.0
    assert rig.slots().candidate is None
