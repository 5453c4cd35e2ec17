"""What `covey-convert build` costs beside the vendors' tools called directly, in CPU seconds, in turns, on the same model and data.

CPU seconds of all processes involved, because a machine shared with others stretches wall time by what they do. On the vendors' side
stand onnxslim once and one script a target (`vendor.py`), which converts with the same settings, asks source and result on the same
evaluation samples, and times both for as long. Covey's side does that, and beyond it compares column by column, makes golden vectors
on two kernels, measures load time and memory in processes of their own, hashes, and writes manifest and provenance.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.matrix.vendor import TOOLS
from covey_converters import toolchain

_SECONDS = 0.5
_SCRIPT = Path(__file__).resolve().parent / "vendor.py"
_COMMAND = Path(sys.executable).with_name("covey-convert")


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """CPU seconds of one round. `vendor_bare`: conversion alone, without evaluation and timing."""

    covey: float
    vendor: float
    vendor_bare: float

    @property
    def ratio(self) -> float:
        return self.covey / self.vendor


def compare(source: Path, calibration: Path, evaluation: Path, work: Path, rounds: int) -> list[Round]:
    """`source`: an ONNX model with an input `image`; each round is both sides, all targets. Raises `subprocess.CalledProcessError`."""
    found = toolchain.find("onnx2tf", toolchain.places(os.environ))
    if found.folder is None:
        raise SystemExit("the benchmark of cost needs toolchain onnx2tf: covey-convert toolchain install onnx2tf")
    os.environ["ONNX2TF_PYTHON"] = str(toolchain.python_of(found.folder))
    return [_round(source, calibration, evaluation, work / str(number)) for number in range(rounds)]


def _round(source: Path, calibration: Path, evaluation: Path, work: Path) -> Round:
    work.mkdir(parents=True, exist_ok=True)
    before = _used()
    graph = work / "slim.onnx"
    _run(
        [sys.executable, "-c", "import sys, onnxslim; onnxslim.slim(sys.argv[1], sys.argv[2])", str(source), str(graph)]
    )
    slimmed = _used() - before
    bare = slimmed
    for target in TOOLS:
        job = {
            "target": target,
            "graph": str(graph),
            "source": str(source),
            "calibration": str(calibration),
            "evaluation": str(evaluation),
            "out": str(work / "vendor" / target),
            "seconds": _SECONDS,
        }
        answer = json.loads(_run([sys.executable, str(_SCRIPT), json.dumps(job)]).splitlines()[-1])
        bare += float(answer["cpu_s"]["converted"])
    vendor = _used() - before
    words = [word for target in TOOLS for word in ("--target", target)]
    words += ["--calibration", str(calibration), "--evaluation", str(evaluation), "-o", str(work / "covey"), "--json"]
    _run([str(_COMMAND), "build", str(source), *words])
    return Round(covey=_used() - before - vendor, vendor=vendor, vendor_bare=bare)


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "CI": "true"}).stdout


def ratio(rounds: list[Round]) -> float:
    return round(statistics.median(one.ratio for one in rounds), 3)
