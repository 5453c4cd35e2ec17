"""Callers that ask the same again and again, as applications do: each answer is of its own request, whatever happens to the builds."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.client import SHARED_MEMORY_FROM, Client
from covey_agent.gateway.control_api import Done, Settle
from covey_agent.runner.arena import KEPT_BYTES
from covey_agent.runner.backends.onnxruntime import load
from covey_contract.messages import Probation
from covey_contract.reasons import Reason
from covey_hil.processes import wait_for
from covey_hil.testing.manifests import floats, made_manifest

MODEL, SIZE = "scale", 8
LARGE = SHARED_MEMORY_FROM // (SIZE * 4)  # rows; far more than goes with a frame

Ask = Callable[[float], tuple[str, bool]]


def asking(client: Client, rows: int, factors: dict[str, float]) -> Ask:
    """Asks with rows of that value; the version that answered, and whether it is its answer."""

    def ask(value: float) -> tuple[str, bool]:
        x = np.full((rows, SIZE), value, np.float32)
        outputs = client.infer(MODEL, {"x": x})
        return outputs.version, np.allclose(outputs["y"], x * np.float32(factors[outputs.version]), rtol=1e-5)

    return ask


@pytest.fixture(params=["small", "large", "shared"])
def ask(rig: Any, request: pytest.FixtureRequest) -> Iterator[Ask]:
    with Client(rig.run_dir / "inference.sock", shared_memory=request.param == "shared") as client:
        yield asking(client, 1 if request.param == "small" else LARGE, {"1": 2.0, "2": 3.0})


def test_each_answer_is_of_its_own_request_also_when_the_build_changes(rig: Any, ask: Ask) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2")
    rig.serve(old)
    assert [ask(value) for value in (1.0, 2.0, 3.0, 4.0)] == [("1", True)] * 4
    rig.load(new)
    rig.switch(new, Probation())
    assert [ask(value) for value in (5.0, 6.0, 7.0)] == [("2", True)] * 3
    assert rig.order(Settle(model=MODEL)) == Done()
    assert ask(8.0) == ("2", True)
    counts = {window.version: (window.ok, window.end_to_end.count) for window in rig.collect().windows}
    assert counts == {"1": (4, 4), "2": (4, 4)}


def test_what_a_build_in_probation_fails_is_answered_by_the_previous_one(rig: Any, ask: Ask) -> None:
    """Version 2 answers NaN for negative numbers, where version 1 has an answer."""
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2", root=True)
    rig.serve(old)
    assert [ask(1.0) for _ in range(3)] == [("1", True)] * 3
    rig.load(new)
    rig.switch(new, Probation())
    assert [ask(1.0) for _ in range(3)] == [("2", True)] * 3
    assert ask(-1.0) == ("1", True)
    assert rig.slots().reverted.reason is Reason.BAD_OUTPUT
    assert ask(-2.0) == ("1", True)
    [window] = [window for window in rig.collect().windows if window.version == "2"]
    assert (window.ok, window.fallbacks, window.errors) == (4, 1, {})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_runner_that_is_gone_costs_no_request(rig: Any, ask: Ask, how: signal.Signals) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2")
    rig.serve(old)
    assert [ask(1.0) for _ in range(3)] == [("1", True)] * 3
    rig.load(new)
    rig.switch(new, Probation())
    assert [ask(1.0) for _ in range(3)] == [("2", True)] * 3
    os.kill(rig.pid_of(new), how)
    assert ask(2.0) == ("1", True)
    assert rig.slots().active == old.digest
    os.kill(rig.pid_of(old), signal.SIGKILL)
    assert ask(3.0) == ("1", True)  # which was started anew, while the request waited


def test_many_callers_while_builds_change(rig: Any) -> None:
    builds = [rig.build(2.0, "1"), rig.build(3.0, "2")]
    rig.serve(builds[0])
    stop, wrong, asked = threading.Event(), list[tuple[str, float]](), list[int]()

    def call(number: int) -> None:
        with Client(rig.run_dir / "inference.sock", shared_memory=number == 0) as client:
            ask, count = asking(client, LARGE + number % 2, {"1": 2.0, "2": 3.0}), 0
            while not stop.is_set():
                count += 1
                version, right = ask(number + count / 1000)
                if not right:
                    wrong.append((version, count))
            asked.append(count)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for build in (builds[1], builds[0], builds[1]):
            rig.load(build)
            rig.switch(build, Probation())
            assert rig.order(Settle(model=MODEL)) == Done()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(asked) == 4
    windows = rig.collect().windows
    assert sum(window.ok for window in windows) == sum(asked)
    assert not any(window.errors for window in windows)


def shared_bytes(pid: int) -> int:
    """Memory that the process shares with its runners."""
    held = {}  # by file: a mapping has a descriptor of its own
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of those that come and go
            if "covey-arena" in str(path.readlink()):
                told = path.stat()
                held[told.st_ino] = told.st_blocks * 512
    return sum(held.values())


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_large_requests_took_is_kept_while_they_come_and_goes_back(rig: Any, shared: bool) -> None:
    rig.serve(rig.build(2.0, "1"))
    rows = 2 * KEPT_BYTES // (SIZE * 4)
    with Client(rig.run_dir / "inference.sock", shared_memory=shared) as client:
        large, small = asking(client, rows, {"1": 2.0}), asking(client, 1, {"1": 2.0})
        for value in (1.0, 2.0, 3.0):
            assert large(value) == ("1", True)
            assert shared_bytes(rig.process.pid) >= 2 * KEPT_BYTES
        wait_for("the memory to go back", lambda: shared_bytes(rig.process.pid) <= 1.5 * KEPT_BYTES, 30)
        assert small(4.0) == ("1", True)
        assert large(5.0) == ("1", True)


def test_inputs_that_lie_where_they_lay_are_read_anew(tmp_path: Path, onnx_by_channel: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_by_channel)
    spec = floats("x", 1, 3, 4, 5)
    model = load(tmp_path, made_manifest(inputs=(spec,), outputs=(spec,)), 1)
    factors = np.array([1, 10, 100], np.float32).reshape(1, 3, 1, 1)
    here, elsewhere = np.zeros((1, 3, 4, 5), np.float32), np.full((1, 3, 4, 5), -1, np.float32)
    for value in range(5):
        here[:] = value
        assert np.array_equal(model.run({"x": here})["y"], here * factors)
        if value == 3:
            assert np.array_equal(model.run({"x": elsewhere})["y"], elsewhere * factors)
