"""Requests that wait are computed together where the build allows it; nobody gets another's rows, or pays for another's fault."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from covey_agent.client import Client, ClientError
from covey_contract.messages import Probation

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Build, Rig

MODEL, SIZE, CALLERS = "scale", 8, 12


@pytest.fixture
def ask_at_once(rig: Rig) -> Callable[..., list[Any]]:
    """Each caller's rows at the same moment; the arrays, or the errors."""

    def ask(inputs: list[np.ndarray[Any, Any]]) -> list[Any]:
        answers: list[Any] = [None] * len(inputs)
        ready = threading.Barrier(len(inputs))

        def call(index: int) -> None:
            with Client(f"127.0.0.1:{rig.port}") as client:
                client.ready()
                ready.wait()
                try:
                    answers[index] = client.infer(MODEL, {"x": inputs[index]})["y"]
                except ClientError as error:
                    answers[index] = error

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    return ask


def rows(index: int) -> np.ndarray[Any, Any]:
    return np.full((1 + index % 3, SIZE), index + 1.0, np.float32)


def serve(rig: Rig, **options: Any) -> Build:
    build = rig.build(3.0, "1.0", heavy=300, **options)
    rig.serve(build)
    return build


def test_requests_that_wait_are_computed_together(rig: Rig, ask_at_once: Callable[..., list[Any]]) -> None:
    serve(rig, max_batch=16)
    for _ in range(3):
        answers = ask_at_once([rows(index) for index in range(CALLERS)])
        for index, answer in enumerate(answers):
            np.testing.assert_allclose(answer, rows(index) * 3.0, rtol=1e-5)
    (window,) = rig.collect().windows
    assert window.ok == 3 * CALLERS
    assert max(window.batches) > 3  # no caller has more rows than that
    assert max(window.batches) <= 16
    assert sum(size * count for size, count in window.batches.items()) == 3 * sum(len(rows(i)) for i in range(CALLERS))
    assert window.compute.count == sum(window.batches.values()) < window.ok


def test_a_build_without_an_open_batch_computes_each_alone(rig: Rig, ask_at_once: Callable[..., list[Any]]) -> None:
    serve(rig)
    ask_at_once([rows(index) for index in range(CALLERS)])
    (window,) = rig.collect().windows
    assert (window.batches, window.compute.count) == ({}, CALLERS)


def test_one_callers_fault_is_its_own(rig: Rig, ask_at_once: Callable[..., list[Any]]) -> None:
    """A row of which the build makes NaN spoils the answer of all who went with it: they are asked again, each alone."""
    serve(rig, max_batch=64, root=True)
    inputs = [rows(index) for index in range(CALLERS)]
    inputs[5] = -inputs[5]
    for _ in range(3):
        answers = ask_at_once(inputs)
        assert isinstance(answers[5], ClientError)
        assert "NaN" in str(answers[5])
        for index in set(range(CALLERS)) - {5}:
            np.testing.assert_allclose(answers[index], inputs[index] * 3.0, rtol=1e-5)


def test_a_build_that_does_not_keep_its_promise_still_answers(rig: Rig, ask_at_once: Callable[..., list[Any]]) -> None:
    serve(
        rig,
        max_batch=64,
        single=True,
        vectors={"in/x": np.ones((1, 1, SIZE), np.float32), "out/y": np.full((1, 1, SIZE), 3, np.float32)},
    )
    inputs = [np.full((1, SIZE), index + 1.0, np.float32) for index in range(CALLERS)]
    for index, answer in enumerate(ask_at_once(inputs)):
        np.testing.assert_allclose(answer, inputs[index] * 3.0, rtol=1e-5)


def test_in_probation_each_request_is_judged_alone(rig: Rig, ask_at_once: Callable[..., list[Any]]) -> None:
    serve(rig, max_batch=16)
    newer = rig.build(5.0, "2.0", heavy=300, max_batch=16)
    rig.load(newer)
    rig.switch(newer, Probation(seconds=60))
    rig.collect()
    ask_at_once([rows(index) for index in range(CALLERS)])
    (window,) = rig.collect().windows
    assert set(window.batches) <= {1, 2, 3}
    assert rig.slots().active == newer.digest
