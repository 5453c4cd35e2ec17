"""Samples of requests and answers: readable by NumPy, bounded on disk, and nothing at all unless it is asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from covey_agent.client import Client
from covey_agent.gateway.capture import Capture
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.runner_process import BuildSpec, Reply
from covey_agent.gateway.settings import Sampling
from covey_agent.runner.protocol import Result, TensorInfo

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Rig

MODEL, SIZE = "scale", 8


@pytest.fixture
def capturing(rig: Rig) -> tuple[Rig, Path]:
    rig.stop()
    folder = rig.folder / "capture"
    rig.start("--capture", str(folder), "--capture-share", "1.0", "--capture-mb", "1")
    return rig, folder


def samples(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_samples_are_what_was_asked_and_answered(capturing: tuple[Rig, Path]) -> None:
    rig, folder = capturing
    build = rig.build(3.0, "1.0")
    rig.serve(build)
    rows = np.arange(2 * SIZE, dtype=np.float32).reshape(2, SIZE)
    with Client(f"127.0.0.1:{rig.port}") as client:
        client.infer(MODEL, {"x": rows})
    until(lambda: samples(folder))
    with np.load(samples(folder)[0]) as archive:
        np.testing.assert_array_equal(archive["in/x"], rows)
        np.testing.assert_array_equal(archive["out/y"], rows * 3)
        about = json.loads(archive["about.json"])
    assert (about["model"], about["version"], about["build"]) == (MODEL, "1.0", build.digest)
    assert folder.stat().st_mode & 0o077 == 0
    told = rig.collect().capture
    assert told is not None
    assert (told.share, told.limit_mb, told.samples, told.dropped) == (1.0, 1.0, 1, 0)
    assert told.held_mb == samples(folder)[0].stat().st_size / 1e6


def test_nothing_is_kept_unless_it_is_asked_for(rig: Rig) -> None:
    rig.serve(rig.build(3.0, "1.0"))
    with Client(f"127.0.0.1:{rig.port}") as client:
        client.infer(MODEL, {"x": np.ones((1, SIZE), np.float32)})
    assert [path.name for path in rig.folder.rglob("*.npz")] == ["golden.npz"]
    assert rig.collect().capture is None


# --- the bounds, without a gateway ----------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def offer(capture: Capture, spec: BuildSpec, size: int) -> None:
    info = TensorInfo("x", "UINT8", (1, size), size)
    request = InferRequest("", (info,), (bytes(size),), ("x",), frozenset(), None)
    capture.offer(spec, request, Reply(Result(1, 0.0, (info,)), bytes(size)))


@pytest.fixture
def spec(rig: Rig) -> BuildSpec:
    from covey_contract.manifest import Manifest
    from covey_contract.wire import decode

    build = rig.build(1.0, "9.0")
    return BuildSpec(build.digest, build.folder, decode(Manifest, (build.folder / "manifest.json").read_bytes()))


def test_the_oldest_go_first_also_over_a_restart(tmp_path: Path, spec: BuildSpec) -> None:
    clock, settings = Time(), Sampling(tmp_path / "c", 1.0, 1_000_000)
    for start in range(2):
        capture = Capture(settings, lambda: 0.0, clock, lambda: int(clock.now * 1000))
        capture.start()
        for number in range(1, 11):
            clock.now += 1
            offer(capture, spec, 100_000)
            until(lambda: capture.kept + capture.dropped == number)  # noqa: B023  # it is over before the next
        capture.stop()
        assert (capture.kept, capture.dropped) == (10, 0)
        times = sorted(int(path.name.split("-")[0]) for path in samples(tmp_path))
        assert times == [1000 * (10 * start + second) for second in range(7, 11)]
        assert sum(path.stat().st_size for path in samples(tmp_path)) <= 1_000_000


def test_a_sample_that_is_too_large_is_not_kept(tmp_path: Path, spec: BuildSpec) -> None:
    capture = Capture(Sampling(tmp_path / "c", 1.0, 1_000_000), lambda: 0.0, Time(), lambda: 0)
    capture.start()
    offer(capture, spec, 300_000)
    capture.stop()
    assert (capture.kept, capture.dropped, samples(tmp_path)) == (0, 1, [])


def test_a_share_is_a_share_and_never_more_than_ten_a_second(tmp_path: Path, spec: BuildSpec) -> None:
    clock = Time()
    draws = iter([0.5, 0.009, 0.0, 0.0, 0.02])
    capture = Capture(Sampling(tmp_path / "c", 0.01, 1_000_000), lambda: next(draws), clock, lambda: 0)
    capture.start()
    for passed in (1.0, 1.0, 0.01, 0.2, 1.0):  # not drawn, kept, too soon, kept, not drawn
        clock.now += passed
        offer(capture, spec, 100)
    capture.stop()
    assert (capture.kept, capture.dropped) == (2, 0)


def test_a_folder_that_cannot_be_written_costs_samples_alone(tmp_path: Path, spec: BuildSpec) -> None:
    folder = tmp_path / "c"
    capture = Capture(Sampling(folder, 1.0, 1_000_000), lambda: 0.0, Time(), lambda: 0)
    capture.start()
    (folder / spec.manifest.model).write_bytes(b"a file where the folder should be")
    offer(capture, spec, 100)
    capture.stop()
    assert (capture.kept, capture.dropped) == (0, 1)
