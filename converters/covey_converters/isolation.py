"""Runs the build process and survives whatever it does: deadline, kill of its whole process group, and a report either way."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from covey_contract.building import MANIFEST_FILE, REPORT_FILE, BuildReport, Outcome
from covey_contract.wire import encode
from covey_converters.errors import BadInputError, ConvertError, UnsupportedError
from covey_converters.folder import read_report, write_report
from covey_converters.inspection import ANSWER_FILE, Inspection, Verdict
from covey_converters.spec import BuildSpec, Limits

LOG_FILE = "build.log"
_TAIL_BYTES = 6000
_POLL_S = 0.2

Say = Callable[[str], None]
Stop = Callable[[], bool]


def _silent(_: str) -> None:
    return None


def _never() -> bool:
    return False


def build_isolated(spec: BuildSpec, limits: Limits, say: Say = _silent, stop: Stop = _never) -> BuildReport:
    """Build in a process of its own, into `spec.out`. A crash, a kill or a deadline is a report with outcome FAILED.

    Once `stop()` is true the build ends early, with the outcome FAILED too.
    """
    out = Path(spec.out)
    _make_way(out)
    out.mkdir(parents=True)
    began = time.monotonic()
    ended = run_process("build", spec, limits, out / LOG_FILE, say, stop)
    tail = log_tail(out / LOG_FILE)
    try:
        report = read_report(out)
    except BadInputError:
        report = None
    if report is None or ended:
        # Whatever lies there is half a build.
        _make_way(out)
        seconds = round(time.monotonic() - began, 2)
        report = BuildReport(
            target=spec.target,
            outcome=Outcome.FAILED,
            reason=ended or "the build process left no report",
            seconds=seconds,
        )
    if report.outcome is not Outcome.BUILT:
        report = msgspec.structs.replace(report, log_tail=tail)
        (out / MANIFEST_FILE).unlink(missing_ok=True)
    write_report(out, report)
    return report


def inspect_isolated(spec: BuildSpec, limits: Limits, say: Say = _silent) -> Inspection:
    """The review of a source; raises `BadInputError` with the one line that says what is wrong with it."""
    found = msgspec.json.decode(_answer("inspect", spec, limits, say), type=Inspection)
    if found.error:
        raise (UnsupportedError if found.unsupported else BadInputError)(found.error)
    return found


def verify_isolated(spec: BuildSpec, limits: Limits, say: Say = _silent) -> Verdict:
    return msgspec.json.decode(_answer("verify", spec, limits, say), type=Verdict)


def _answer(command: str, spec: BuildSpec, limits: Limits, say: Say) -> bytes:
    work = Path(spec.work)
    (work / ANSWER_FILE).unlink(missing_ok=True)
    ended = run_process(command, spec, limits, work / f"{command}.log", say, _never)
    if ended or not (work / ANSWER_FILE).exists():
        raise ConvertError(f"reading {Path(spec.source).name} failed: {ended or 'no answer'}")
    return (work / ANSWER_FILE).read_bytes()


def run_process(command: str, spec: BuildSpec, limits: Limits, log: Path, say: Say, stop: Stop) -> str:
    """Run the process to its end; what ended it early, in words, or an empty string."""
    work = Path(spec.work)
    work.mkdir(parents=True, exist_ok=True)
    spec_path = work / f"spec-{spec.target or command}.json"
    spec_path.write_bytes(encode(spec))
    words = [
        *(sys.executable, "-m", "covey_converters.process", command, str(spec_path)),
        *(msgspec.json.encode(limits).decode(), str(os.getpid())),
    ]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=_environment(work),
            start_new_session=True,
        )
        try:
            ended = _follow(process, time.monotonic() + limits.seconds, limits, say, stop)
        finally:
            kill_group(process)
    if ended:
        return ended
    code = process.returncode
    if code < 0:
        return f"the build process was killed by {signal.Signals(-code).name}{_likely(-code, limits)}"
    if code:
        last = log_tail(log).splitlines()[-1:]
        return f"the build process ended with exit status {code}{f': {last[0][:300]}' if last else ''}"
    return ""


def _follow(process: subprocess.Popen[bytes], deadline: float, limits: Limits, say: Say, stop: Stop) -> str:
    """Hand on its steps until it closes its pipe or has to be stopped; then why."""
    assert process.stdout is not None  # noqa: S101  # it was started with a pipe
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() > deadline:
                return f"the build did not end within {limits.seconds:g} s"
            if stop():
                return "the build was stopped"
            if not selector.select(min(_POLL_S, max(deadline - time.monotonic(), 0.0))):
                # A process that was killed may leave a child that holds the pipe open.
                if process.poll() is not None:
                    return ""
                continue
            chunk = process.stdout.read()
            if not chunk:
                break
            for line in chunk.decode(errors="replace").splitlines():
                say(line[:200])
    try:
        process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return f"the build did not end within {limits.seconds:g} s"
    return ""


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with all that it started, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def log_tail(path: Path) -> str:
    """The end of a log, readable: progress bars rewrite their line many times, and only its last state is kept."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 10 * _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join(line for line in lines if line)[-_TAIL_BYTES:]


def _likely(number: int, limits: Limits) -> str:
    if number == signal.SIGXCPU:
        return f": it used more than {limits.cpu_seconds} s of CPU"
    return " (out of memory?)" if number == signal.SIGKILL else ""


def _make_way(out: Path) -> None:
    """Remove an earlier build of ours; never anything else. Raises `BadInputError`."""
    if not out.exists():
        return
    ours = out.is_dir() and (not any(out.iterdir()) or (out / REPORT_FILE).exists() or (out / LOG_FILE).exists())
    if not ours:
        raise BadInputError(f"{out} is there already and is not a build of ours")
    shutil.rmtree(out)


def _environment(work: Path) -> dict[str, str]:
    """What a toolchain needs to run, and no secret of ours (a worker's token is in its environment)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVEY_TOKEN")}
    return {**kept, "CI": "true", "TMPDIR": str(work), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
