"""What real requests looked like, counted by real runners, window by window and build by build."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.http as triton

from covey_agent.gateway.control_api import Settle
from covey_contract.drift import InputReference, OutputCounts, OutputKind, OutputReference, Reference
from covey_contract.messages import Probation

MODEL, SIZE = "scale", 8
REFERENCE = Reference(
    samples=1,
    outputs={"y": OutputReference(kind=OutputKind.LOGITS, counts=OutputCounts())},
    inputs={"x": InputReference(low=-1.0, high=50.0)},
)


def ask(rig: Any, *rows: list[float]) -> None:
    x = np.array(rows, np.float32)
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        client.infer(MODEL, [triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)])


def row(top: int, value: float = 9.0) -> list[float]:
    return [value if index == top else 0.0 for index in range(SIZE)]


def test_each_window_says_what_was_answered_and_asked(rig: Any) -> None:
    one = rig.build(2.0, "1.0", reference=REFERENCE)
    rig.serve(one)
    rig.collect()  # what warming up looked like is nobody's answer
    ask(rig, row(3))
    ask(rig, row(3), row(5))
    ask(rig, [7.0] * SIZE)
    ask(rig, row(1, 99.0))
    (window,) = rig.collect().windows
    assert window.outputs["y"].count == 5
    assert window.outputs["y"].classes == {0: 1, 1: 1, 3: 2, 5: 1}  # of equal scores the lowest class
    assert (window.outputs["y"].scores[2], window.outputs["y"].scores[-1]) == (1, 4)
    counts = window.inputs["x"]
    assert (counts.count, counts.constant, counts.out_of_range, counts.nan) == (4, 1, 1, 0)
    assert rig.collect().windows == ()


def test_counts_are_of_the_build_that_computed(rig: Any) -> None:
    one, two = rig.build(2.0, "1.0", reference=REFERENCE), rig.build(-1.0, "1.1", reference=REFERENCE)
    rig.serve(one)
    ask(rig, row(3))
    rig.load(two)
    rig.switch(two, Probation(seconds=60))
    ask(rig, row(0))
    windows = {window.build: window for window in rig.collect().windows}
    assert windows[one.digest].outputs["y"].classes == {3: 1}
    assert windows[two.digest].outputs["y"].classes == {1: 1}
    assert rig.order(Settle(model=MODEL)) is not None


def test_a_build_without_a_reference_is_served_all_the_same(rig: Any) -> None:
    rig.serve(rig.build(2.0, "1.0"))
    ask(rig, row(3))
    (window,) = rig.collect().windows
    assert (window.ok, window.outputs, window.inputs) == (1, {}, {})
