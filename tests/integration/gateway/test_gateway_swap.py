"""Hot swap, probation and the way back, under load: no request fails, none is answered wrongly."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from covey_agent.gateway.control_api import Done, Failure, Load, Loaded, Revert, Settle, Shutdown, Switch, Unload
from covey_contract.messages import Probation
from covey_contract.reasons import Reason
from covey_hil.testing.waiting import until
from tests.integration.gateway.beside import Beside

MODEL = "scale"


class Callers(Beside):
    """Callers that ask all the time and check every answer against the version that it says it is of."""

    def __init__(self, port: int, factors: dict[str, float], threads: int = 4) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self._port = port
        self._factors = factors
        super().__init__(*(functools.partial(self._call, seed) for seed in range(threads)))

    def _call(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        with triton.InferenceServerClient(f"127.0.0.1:{self._port}") as client:
            while not self.stopped.is_set():
                x = random.random((2, 8), dtype=np.float32) + np.float32(0.1)
                tensor = triton.InferInput("x", [2, 8], "FP32").set_data_from_numpy(x)
                try:
                    result = client.infer(MODEL, [tensor])
                except InferenceServerException as error:
                    self.failed.append(str(error))
                    continue
                version = result.get_response()["model_version"]
                self.answers[version] += 1
                if not np.allclose(result.as_numpy("y"), x * np.float32(self._factors[version]), rtol=1e-5):
                    self.wrong.append(version)

    def __len__(self) -> int:
        return len(self.threads)

    def count(self, version: str) -> int:
        return self.answers[version]


def waiting(rig: Any) -> int:
    """Requests in line."""
    with urllib.request.urlopen(f"http://127.0.0.1:{rig.port}/metrics", timeout=20) as answer:
        [line] = [line for line in answer.read().decode().splitlines() if line.startswith("covey_model_queue_length{")]
    return int(float(line.split()[-1]))


@contextmanager
def load_on(rig: Any, factors: dict[str, float]) -> Iterator[Callers]:
    with Callers(rig.port, factors) as callers:
        until(lambda: sum(callers.answers.values()) > 50, "callers are answered")
        yield callers
    assert callers.failed == []
    assert callers.wrong == []


def test_swaps_under_load_lose_nothing(rig: Any) -> None:
    builds = {version: rig.build(factor, version) for version, factor in (("1", 2.0), ("2", 3.0), ("3", 4.0))}
    rig.serve(builds["1"])
    with load_on(rig, {"1": 2.0, "2": 3.0, "3": 4.0}) as callers:
        for round_ in range(6):
            version = "231"[round_ % 3]
            rig.load(builds[version])
            rig.switch(builds[version], Probation())
            before = callers.count(version)
            until(lambda: callers.count(version) > before + 20, "the new build answers")  # noqa: B023  # used at once
            assert rig.order(Settle(model=MODEL)) == Done()
    slots = rig.slots()
    assert slots.active == builds["1"].digest
    assert slots.previous is None
    until(lambda: len(rig.slots().runners) == 1, "old runners are gone")
    windows = {window.version: window for window in rig.collect().windows}
    assert sum(window.ok for window in windows.values()) == sum(callers.answers.values())
    assert all(not window.errors for window in windows.values())
    assert windows["2"].compute.count == windows["2"].end_to_end.count == windows["2"].ok
    assert rig.collect().windows == ()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_candidate_that_dies_or_hangs_costs_no_request(rig: Any, how: signal.Signals) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2")
    rig.serve(old)
    with load_on(rig, {"1": 2.0, "2": 3.0}) as callers:
        rig.load(new)
        rig.switch(new, Probation())
        until(lambda: callers.count("2") > 20, "the new build answers")
        pid = rig.pid_of(new)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: waiting(rig) == len(callers) - 1, "a request is with it, and the others wait")
        os.kill(pid, how)
        until(lambda: rig.slots().active == old.digest, "the gateway goes back")
        before = callers.count("1")
        until(lambda: callers.count("1") > before + 20, "the old build answers")
    slots = rig.slots()
    assert (slots.previous, slots.candidate, slots.in_probation) == (None, None, False)
    assert slots.reverted.build == new.digest
    assert slots.reverted.to == old.digest
    assert slots.reverted.reason == (Reason.RUNNER_CRASHED if how is signal.SIGKILL else Reason.RUNNER_HUNG)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the dead runner is reaped")
    [window] = [window for window in rig.collect().windows if window.version == "2"]
    assert window.probation
    assert window.fallbacks >= 1
    assert not window.errors


def test_nan_takes_a_candidate_back(rig: Any) -> None:
    """Version 2 answers NaN for negative numbers, where version 1 has an answer."""
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2", root=True)
    rig.serve(old)
    rig.load(new)
    rig.switch(new, Probation())
    assert answered_by(rig, 1.0) == "2"
    assert answered_by(rig, -1.0) == "1"
    slots = rig.slots()
    assert slots.active == old.digest
    assert slots.reverted.reason is Reason.BAD_OUTPUT
    assert "NaN" in slots.reverted.detail


def test_a_request_that_every_build_fails_takes_nothing_back(rig: Any) -> None:
    old, new = rig.build(2.0, "1", root=True), rig.build(3.0, "2", root=True)
    rig.serve(old)
    rig.load(new)
    rig.switch(new, Probation(max_errors=0))
    for _ in range(3):
        with pytest.raises(InferenceServerException, match="NaN"):
            answered_by(rig, -1.0)
    assert answered_by(rig, 1.0) == "2"
    assert rig.slots().active == new.digest
    [window] = [window for window in rig.collect().windows if window.version == "2"]
    assert window.errors == {"bad_output": 3}


def test_inference_errors_are_forgiven_up_to_a_number(rig: Any) -> None:
    """Version 2 fails on two rows at a time, version 1 does not."""
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2", single=True)
    rig.serve(old)
    rig.load(new)
    rig.switch(new, Probation(max_errors=2))
    assert [answered_by(rig, 1.0, rows=2) for _ in range(2)] == ["1", "1"]
    assert answered_by(rig, 1.0) == "2"
    assert answered_by(rig, 1.0, rows=2) == "1"
    assert rig.slots().active == old.digest
    assert rig.slots().reverted.reason is Reason.INFERENCE_ERRORS
    [window] = [window for window in rig.collect().windows if window.version == "2"]
    assert (window.ok, window.fallbacks, window.errors) == (4, 3, {})


def test_inference_errors_without_a_way_back(rig: Any) -> None:
    rig.serve(rig.build(2.0, "1", single=True))
    with pytest.raises(InferenceServerException, match="reshape") as failed:
        answered_by(rig, 1.0, rows=2)
    assert failed.value.status() == "500"
    assert answered_by(rig, 1.0) == "1"


def answered_by(rig: Any, value: float, *, rows: int = 1, **options: Any) -> str:
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        tensor = triton.InferInput("x", [rows, 8], "FP32").set_data_from_numpy(np.full((rows, 8), value, np.float32))
        return str(client.infer(MODEL, [tensor], **options).get_response()["model_version"])


def test_a_slow_candidate_is_taken_back(rig: Any) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2", heavy=600)
    rig.serve(old)
    for _ in range(30):
        answered_by(rig, 1.0)
    rig.load(new)
    rig.switch(new, Probation(max_slowdown=3.0, min_requests=20))
    for _ in range(20):
        assert answered_by(rig, 1.0) == "2"
    until(lambda: answered_by(rig, 1.0) == "1", "the verdict")
    reverted = rig.slots().reverted
    assert reverted.reason is Reason.TOO_SLOW
    assert "p99" in reverted.detail


def test_a_first_build_that_crashes_leaves_a_clear_503(rig: Any) -> None:
    build = rig.build(2.0, "1")
    rig.load(build)
    with pytest.raises(InferenceServerException, match="serves yet"):
        answered_by(rig, 1.0)
    rig.switch(build, Probation())
    assert answered_by(rig, 1.0) == "1"
    os.kill(rig.pid_of(build), signal.SIGKILL)
    until(lambda: rig.slots().active is None, "the build is given up")
    with pytest.raises(InferenceServerException, match="runner_crashed") as refused:
        answered_by(rig, 1.0)
    assert refused.value.status() == "503"
    assert rig.slots().reverted.to is None


def test_a_trusted_build_that_crashes_is_started_anew(rig: Any) -> None:
    build = rig.build(2.0, "1")
    rig.serve(build)
    with load_on(rig, {"1": 2.0}) as callers:
        for _ in range(2):
            pid = rig.pid_of(build)
            os.kill(pid, signal.SIGKILL)
            until(lambda: any(r.pid != pid and r.state == "serving" for r in rig.slots().runners), "it is back")  # noqa: B023
            before = callers.count("1")
            until(lambda: callers.count("1") > before + 20, "it answers")  # noqa: B023  # used at once
        assert isinstance(rig.load(build), Loaded)


def test_a_previous_build_that_dies_is_just_dropped(rig: Any) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2")
    rig.serve(old)
    rig.load(new)
    rig.switch(new, Probation())
    os.kill(rig.pid_of(old), signal.SIGKILL)
    until(lambda: rig.slots().previous is None, "it is dropped")
    assert answered_by(rig, 1.0) == "2"
    os.kill(rig.pid_of(new), signal.SIGKILL)  # nothing to go back to: a doubtful build is better than none
    assert answered_by(rig, 1.0) == "2"
    assert rig.slots().reverted is None


def test_orders(rig: Any) -> None:
    old, new = rig.build(2.0, "1"), rig.build(3.0, "2")
    rig.serve(old)
    assert rig.load(old) == rig.load(old)
    assert isinstance(rig.order(Switch(model=MODEL, build=new.digest)), Failure)
    assert isinstance(rig.order(Switch(model="other", build=new.digest)), Failure)
    rig.load(new)
    rig.switch(new, Probation())
    rig.switch(new, Probation())  # asking twice is harmless
    assert rig.slots().previous == old.digest
    assert rig.order(Revert(model=MODEL, reason=Reason.OPERATOR)) == Done()
    assert answered_by(rig, 1.0) == "1"
    assert rig.order(Unload(model=MODEL)) == Done()
    with pytest.raises(InferenceServerException, match="no build"):
        answered_by(rig, 1.0)
    assert rig.order(Unload(model="never")) == Done()
    until(lambda: rig.slots().runners == (), "all runners are gone")


def test_builds_that_do_not_load(rig: Any, tmp_path: Path) -> None:
    good = rig.build(2.0, "1")
    rig.serve(good)

    def refused(build: Any, **options: Any) -> Failure:
        answer = rig.order(Load(model=MODEL, build=build.digest, folder=str(build.folder), **options))
        assert isinstance(answer, Failure), answer
        return answer

    other = rig.build(3.0, "2", vectors={"in/x": np.ones((1, 1, 8), "f4"), "out/y": np.ones((1, 1, 8), "f4")})
    mismatch = refused(other)
    assert mismatch.reason is Reason.GOLDEN_MISMATCH
    assert "output 'y' is 3.0" in mismatch.detail
    assert isinstance(rig.load(other, check_golden=False), Loaded)
    broken = rig.build(3.0, "3")
    (broken.folder / "model.onnx").write_bytes(b"no model at all")
    assert refused(broken).reason is Reason.LOAD_FAILED
    slow = rig.build(3.0, "4")
    assert refused(slow, timeout_s=0.01).reason is Reason.LOAD_TIMEOUT
    slow.digest = "0" * 64
    assert refused(slow).reason is Reason.DIGEST_MISMATCH
    slow.folder = tmp_path
    assert refused(slow).reason is Reason.LOAD_FAILED
    assert answered_by(rig, 1.0) == "1"
    until(lambda: len(rig.slots().runners) == 1, "failed runners are gone")


def test_deadlines_and_the_bounded_queue(rig: Any) -> None:
    rig.stop()
    rig.start("--queue", "2")
    build = rig.build(2.0, "1")
    rig.serve(build)
    os.kill(rig.pid_of(build), signal.SIGSTOP)
    outcomes: list[str] = []

    def call() -> None:
        try:
            outcomes.append(answered_by(rig, 1.0, timeout=1_500_000))
        except InferenceServerException as error:
            outcomes.append(str(error.status()))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.kill(rig.pid_of(build), signal.SIGCONT)
    assert sorted(outcomes) == ["429", "429", "429", "504", "504", "504"]
    assert answered_by(rig, 1.0) == "1"
    [window] = rig.collect().windows
    assert window.errors == {"queue_full": 3, "deadline": 3}


def test_the_gateway_process(rig: Any) -> None:
    build = rig.build(2.0, "1")
    rig.serve(build)
    pid = rig.pid_of(build)
    command = [sys.executable, "-m", "covey_agent.gateway", "--run-dir", str(rig.run_dir), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 3
    assert len(second.stderr.splitlines()) == 1
    assert f"process {rig.process.pid}" in second.stderr
    command = [*command[:3], "--run-dir", str(rig.folder / "other"), "--port", str(rig.port)]
    third = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (third.returncode, len(third.stderr.splitlines())) == (3, 1)
    rollup = Path(f"/proc/{rig.process.pid}/smaps_rollup").read_text()
    pss_kb = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kb < 30_000
    assert (rig.run_dir / "gateway.sock").stat().st_mode & 0o777 == 0o600
    rig.process.send_signal(signal.SIGHUP)
    assert answered_by(rig, 1.0) == "1"
    rig.process.kill()
    rig.process.wait()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "no orphan")
    assert (rig.run_dir / "gateway.sock").exists()  # stale
    rig.start()
    rig.serve(build)
    assert answered_by(rig, 1.0) == "1"
    assert rig.order(Shutdown()) == Done()
    assert rig.process.wait(15) == 0
    assert not (rig.run_dir / "gateway.sock").exists()


def test_a_build_that_wants_too_much_memory_fails_alone(rig: Any) -> None:
    rig.stop()
    rig.start("--budget", "*:memory=1000")
    good = rig.build(2.0, "1.0")
    rig.serve(good)
    assert "runners' memory is bounded by" in rig.log()
    rig.stop()
    rig.start("--budget", f"{MODEL}:memory=8")  # less than a runtime allocates, whoever has its files in memory already
    answer = rig.order(Load(model=MODEL, build=good.digest, folder=str(good.folder)))
    assert isinstance(answer, Failure)
    assert answer.reason in (Reason.LOAD_FAILED, Reason.NO_MEMORY)
