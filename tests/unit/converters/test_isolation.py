"""The build process may crash, hang, or run out of memory: its parent gets a report, and nothing is left running."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from covey_contract.building import Outcome
from covey_converters import toolchain
from covey_converters.errors import BadInputError
from covey_converters.folder import read_report
from covey_converters.isolation import build_isolated, inspect_isolated, log_tail
from covey_converters.spec import BuildSpec, Limits

MakeModel = Callable[..., Path]


def spec_for(source: Path, target: str, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model="small",
        version="1",
        target=target,
        source=str(source),
        out=str(tmp_path / "out" / target),
        work=str(tmp_path / "work"),
        measure_seconds=0.05,
    )


@pytest.fixture(autouse=True)
def work(cleaned: Path, tmp_path: Path) -> None:
    shutil.copytree(cleaned, tmp_path / "work")


def fake_toolchain(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose Python is a shell script: what a toolchain that misbehaves looks like from outside."""
    python = folder / "onnx2tf" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (folder / "onnx2tf" / "covey.stamp").write_text(toolchain.stamp("onnx2tf"))
    monkeypatch.setenv("COVEY_TOOLCHAINS", str(folder))


def ended(pid: int) -> bool:
    """Gone, or dead and not yet reaped by whoever reaps orphans here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_hanging_toolchain_is_killed_with_its_children(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    fake_toolchain(tmp_path / "chains", f"sleep 600 &\necho $! > {pid}.new; mv {pid}.new {pid}\nsleep 600", monkeypatch)
    spec = spec_for(make_model(), "tflite-fp32", tmp_path)
    report = build_isolated(spec, Limits(seconds=90.0), stop=pid.exists)
    assert report.outcome is Outcome.FAILED
    assert report.reason == "the build was stopped"
    assert "building: onnx2tf" in report.log_tail
    deadline = time.monotonic() + 10
    while not ended(int(pid.read_text())):
        assert time.monotonic() < deadline
    assert read_report(tmp_path / "out" / "tflite-fp32") == report


def test_a_build_that_takes_too_long(make_model: MakeModel, tmp_path: Path) -> None:
    began = time.monotonic()
    report = build_isolated(spec_for(make_model(), "onnxruntime-fp32", tmp_path), Limits(seconds=0.2))
    assert report.outcome is Outcome.FAILED
    assert report.reason == "the build did not end within 0.2 s"
    assert time.monotonic() - began < 10


def test_a_toolchain_that_takes_the_process_down(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_toolchain(tmp_path / "chains", "echo last words >&2; kill -SEGV $PPID; sleep 5", monkeypatch)
    report = build_isolated(spec_for(make_model(), "tflite-fp32", tmp_path), Limits())
    assert report.outcome is Outcome.FAILED
    assert report.reason == "the build process was killed by SIGSEGV"
    assert "building: onnx2tf" in report.log_tail


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        (
            "echo KeyError: no such operator; exit 1",
            Outcome.UNSUPPORTED,
            "onnx2tf cannot convert the graph: KeyError: no such",
        ),
        ("kill -ABRT $$", Outcome.FAILED, "onnx2tf crashed"),
        ("exit 0", Outcome.UNSUPPORTED, "onnx2tf cannot convert the graph"),
    ],
)
def test_a_toolchain_that_fails_by_itself(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    outcome: Outcome,
    reason: str,
) -> None:
    fake_toolchain(tmp_path / "chains", script, monkeypatch)
    report = build_isolated(spec_for(make_model(), "tflite-fp32", tmp_path), Limits())
    assert report.outcome is outcome
    assert reason in report.reason


def test_too_little_memory_is_a_failed_build(make_model: MakeModel, tmp_path: Path) -> None:
    report = build_isolated(spec_for(make_model(), "onnxruntime-fp32", tmp_path), Limits(memory_mb=150))
    assert report.outcome is Outcome.FAILED
    assert "the build process" in report.reason


def test_too_much_cpu_is_a_failed_build(make_model: MakeModel, tmp_path: Path) -> None:
    # Inputs so large that measuring alone takes many seconds, also on a fast machine.
    source = make_model(side=1024)
    spec = msgspec.structs.replace(spec_for(source, "onnxruntime-fp32", tmp_path), measure_seconds=60.0)
    report = build_isolated(spec, Limits(cpu_seconds=1))
    assert report.outcome is Outcome.FAILED
    # It ends whichever process of the build has used it up: the one that builds, or the one that measures.
    assert "killed by SIG" in report.reason or "exit status -9" in report.reason


def test_a_build_can_be_stopped(make_model: MakeModel, tmp_path: Path) -> None:
    steps: list[str] = []
    report = build_isolated(
        spec_for(make_model(), "onnxruntime-fp32", tmp_path), Limits(), steps.append, lambda: bool(steps)
    )
    assert report.outcome is Outcome.FAILED
    assert report.reason == "the build was stopped"


def test_a_folder_of_somebody_else_is_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    spec = spec_for(make_model(), "onnxruntime-fp32", tmp_path)
    Path(spec.out).mkdir(parents=True)
    (Path(spec.out) / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="is not a build of ours"):
        build_isolated(spec, Limits())
    assert (Path(spec.out) / "thesis.tex").exists()


def test_a_bad_source_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model()
    path.write_bytes(path.read_bytes()[:50])
    spec = spec_for(path, "onnxruntime-fp32", tmp_path)
    with pytest.raises(BadInputError, match=r"^small.onnx: .*cut short"):
        inspect_isolated(spec, Limits())
    report = build_isolated(spec, Limits())
    assert report.outcome is Outcome.UNSUPPORTED
    assert "cut short" in report.reason


def test_the_worker_s_token_does_not_reach_the_build(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_TOKEN", "a secret of the worker")
    fake_toolchain(tmp_path / "chains", f"env > {tmp_path}/environment; exit 1", monkeypatch)
    build_isolated(spec_for(make_model(), "tflite-fp32", tmp_path), Limits())
    environment = (tmp_path / "environment").read_text()
    assert "CI=true" in environment
    assert "COVEY_TOKEN" not in environment


def test_the_network_is_cut_where_the_kernel_allows_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import ctypes, socket\n"
            "from covey_converters.process import cut_network\n"
            "allowed = cut_network(ctypes.CDLL(None, use_errno=True))\n"
            "try:\n"
            f"    socket.create_connection(('127.0.0.1', {port}), 2).close()\n"
            "    print(allowed, 'reached')\n"
            "except OSError:\n"
            "    print(allowed, 'cut')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"True cut", "False reached"}


def test_a_log_s_tail_keeps_the_last_state_of_progress_bars(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"start\n 1%\r 50%\r100%\n\nend\xff\n")
    assert log_tail(tmp_path / "log") == "start\n100%\nend\ufffd"
    assert log_tail(tmp_path / "none") == ""
