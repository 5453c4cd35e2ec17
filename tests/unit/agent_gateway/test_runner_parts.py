"""The runner's parts without a runtime: frames, layouts, golden vectors, priorities, statistics."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.gateway.stats import MAX_BUILDS, Statistics
from covey_agent.runner import priority
from covey_agent.runner.errors import BadOutputError, LoadError
from covey_agent.runner.golden import mismatch, read_golden
from covey_agent.runner.protocol import (
    PREFIX,
    FrameBuffer,
    FrameError,
    Infer,
    Result,
    SharedInfer,
    Start,
    TensorInfo,
    ToRunner,
    encode_frame,
    split_payload,
    to_runner,
)
from covey_agent.runner.tensors import example_inputs, map_inputs, map_outputs, to_caller
from covey_contract.manifest import DataType, Manifest, TensorSpec, Tolerance
from covey_hil.testing.manifests import floats, made_manifest

SPEC = TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 2, 3, 4), build_name="image", permutation=(0, 2, 3, 1))


def manifest() -> Manifest:
    plain = floats("x", 1, 2)
    return made_manifest(inputs=(plain,), outputs=(plain,))


@given(st.lists(st.binary(max_size=20), max_size=3), st.integers(1, 60))
def test_frames_survive_any_cut(tensors: list[bytes], cut: int) -> None:
    infos = tuple(TensorInfo(f"t{index}", "UINT8", (len(data),), len(data)) for index, data in enumerate(tensors))
    messages: list[ToRunner] = [Start(True, False, 1), Infer(7, infos, ("y",))]
    stream = encode_frame(messages[0]) + encode_frame(messages[1], tensors)
    buffer: FrameBuffer[ToRunner] = FrameBuffer(to_runner)
    got = [frame for start in range(0, len(stream), cut) for frame in buffer.feed(stream[start : start + cut])]
    assert [message for message, _ in got] == messages
    assert [bytes(part) for part in split_payload(infos, got[1][1])] == tensors


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.array(1.0, np.float16), np.zeros((0, 2), np.bool_)])
def test_arrays_travel_as_their_elements(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    info = TensorInfo("x", "FP64", array.shape, array.nbytes)
    buffer: FrameBuffer[ToRunner] = FrameBuffer(to_runner)
    [(_, payload)] = buffer.feed(encode_frame(Infer(7, (info,), ("y",)), [array.data]))
    assert payload == array.tobytes()


@pytest.mark.parametrize("number", [1, 255, 1 << 20, (1 << 64) - 1])
def test_frames_that_differ_in_their_ids(number: int) -> None:
    infos = (TensorInfo("\xff" * 8, "UINT8", (4096,), 4096),)
    buffer: FrameBuffer[ToRunner] = FrameBuffer(to_runner)
    [(message, payload)] = buffer.feed(SharedInfer(infos, ("y", "z")).numbered(number))
    assert (message, payload) == (Infer(number, infos, ("y", "z"), shared=True), b"")


@given(st.binary(max_size=64))
def test_garbage_is_a_frame_error_or_awaits_more(data: bytes) -> None:
    buffer: FrameBuffer[ToRunner] = FrameBuffer(to_runner)
    with contextlib.suppress(FrameError):
        list(buffer.feed(data))


def test_frames_are_bounded() -> None:
    buffer: FrameBuffer[ToRunner] = FrameBuffer(to_runner)
    with pytest.raises(FrameError, match="at most"):
        list(buffer.feed(PREFIX.pack(1 << 30, 0)))
    with pytest.raises(FrameError, match="add up"):
        split_payload((TensorInfo("x", "UINT8", (2,), 2),), b"123")


def test_layouts_both_ways() -> None:
    x = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    built = map_inputs([SPEC], {"x": x})
    assert built["image"].shape == (2, 3, 4, 2)
    assert built["image"].flags.c_contiguous
    np.testing.assert_array_equal(map_outputs([SPEC], built)["x"], x)
    assert example_inputs([SPEC])["x"].shape == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.full((1, 3, 4, 2), np.nan, np.float32), "NaN"),
        (np.zeros((1, 3, 4, 3), np.float32), "shape"),
        (np.zeros((3, 4, 2), np.float32), "shape"),
        (np.zeros((1, 3, 4, 2), np.complex64), "type"),
    ],
)
def test_outputs_that_are_no_answer(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], what: str) -> None:
    with pytest.raises(BadOutputError, match=what):
        to_caller(SPEC, array)


def test_an_output_that_is_missing() -> None:
    with pytest.raises(BadOutputError, match="no output 'image'"):
        map_outputs([SPEC], {})


def test_golden_tolerance() -> None:
    golden = {"y": np.array([1.0, -2.0], np.float32)}
    allowed = {"y": Tolerance(absolute=0.1, relative=0.1)}
    assert mismatch(golden, {"y": np.array([1.15, -2.25], np.float32)}, allowed) is None
    problem = mismatch(golden, {"y": np.array([1.0, -2.5], np.float32)}, allowed)
    assert problem is not None
    assert "-2.5" in problem
    assert mismatch(golden, {"y": np.array([np.nan, -2.0], np.float32)}, allowed) is not None
    assert mismatch(golden, {"y": np.ones((3,), np.float32)}, allowed) is not None
    whole = {"y": np.array([3], np.int64)}
    assert mismatch(whole, {"y": np.array([3], np.int64)}, {}) is None
    assert mismatch(whole, {"y": np.array([4], np.int64)}, {}) is not None
    infinite = {"y": np.array([np.inf], np.float32)}
    assert mismatch(infinite, infinite, {}) is None


def test_golden_files(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with pytest.raises(LoadError, match="cannot be read"):
        read_golden(path, manifest())
    path.write_bytes(b"no archive")
    with pytest.raises(LoadError, match="cannot be read"):
        read_golden(path, manifest())
    np.savez(path, **{"in/x": np.zeros((2, 1, 2), "f4")})  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="lack out/x"):
        read_golden(path, manifest())
    np.savez(path, **{"in/x": np.zeros((2, 1, 2), "f4"), "out/x": np.ones((2, 1, 2), "f4")})  # type: ignore[arg-type]
    assert len(read_golden(path, manifest())) == 2


def test_the_loading_thread_alone_is_idle() -> None:
    seen: list[int] = []

    def load() -> None:
        priority.make_idle()
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert priority.restore()


def test_a_command_is_idle_from_its_first_instruction() -> None:
    """Where it may come back from there; else it begins as ever."""
    words = [*priority.idle_command(), sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    assert int(done.stdout) == (os.SCHED_IDLE if priority.may_return() else os.SCHED_OTHER)


def test_without_the_tool_nothing_is_put_before_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert priority.idle_command() == ()
    broken = tmp_path / priority.CHRT
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert priority.idle_command() == ()


def test_statistics_are_bounded_and_taken_once() -> None:
    statistics = Statistics()
    for number in range(MAX_BUILDS * 2):
        statistics.of(f"b{number}", manifest()).failed("deadline")
        statistics.forget_old({"b0"})
    windows = statistics.take(held={"b0"}, in_probation=None)
    assert len(windows) == MAX_BUILDS
    assert windows[0].build == "b0"
    assert statistics.take(held={"b0"}, in_probation=None) == []
    stats = statistics.of("b0", manifest())
    stats.probation = True
    stats.computed(Result(id=1, compute_s=0.01, outputs=()))
    stats.answered(queue_s=0.0, end_to_end_s=0.02, fallback=True, now_ms=1)
    [window] = statistics.take(held=set(), in_probation=None)
    assert (window.ok, window.fallbacks, window.probation, window.compute.count) == (1, 1, True, 1)
