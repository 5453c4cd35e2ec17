"""What an importer is: how one source format becomes ONNX. A toolchain in an environment of its own does the work.

The toolchain's script leaves in its folder `model.onnx`, `answers.npz` (`in/NAME`, `out/NAME`: what the source itself answers, in
its own framework) and `about.json`. Invariant: an ONNX that answers otherwise than its source is never handed on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from covey_contract.sources import SourceFormat
from covey_converters.backend import Array
from covey_converters.errors import BadInputError, UnsupportedError
from covey_converters.toolchain import TIMED_OUT, run_in

GRAPH = "model.onnx"
_ANSWERS = "answers.npz"
_ABOUT = "about.json"
_SECONDS = 900.0
# Of the largest magnitude of an output: float rounding of another framework's kernels, and no more.
_CLOSE = 1e-3

Shapes = Mapping[str, tuple[int, ...]]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the script says of its work."""

    toolchain: dict[str, str] = {}
    notes: list[str] = []


@dataclass(frozen=True)
class Imported:
    """The ONNX to review. `native` is the source itself where a backend takes it as its own float build."""

    path: Path
    format: SourceFormat
    notes: tuple[str, ...] = ()
    native: Path | None = None


class Importer(Protocol):
    """One format."""

    @property
    def toolchain(self) -> str | None:
        """The environment that it needs, by name."""

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        """Leave ONNX in `folder`, an existing folder of its own; raises `BadInputError` or `UnsupportedError`."""


def convert(path: Path, format_: SourceFormat, toolchain: str, folder: Path, shapes: Shapes) -> Imported:
    """Run the toolchain's script on a source, and compare what came out with what the source answers."""
    done = folder / "imported"
    if not done.exists():
        partial = folder / "imported.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        job = {"format": format_.value, "source": str(path), "out": str(partial), "shapes": dict(shapes)}
        code, tail = run_in(toolchain, [json.dumps(job)], seconds=_SECONDS)
        if code < 0 or code == TIMED_OUT:
            raise UnsupportedError(f"{path.name}: toolchain {toolchain} crashed (exit status {code}): {tail}")
        if code != 0 or not (partial / GRAPH).exists():
            raise BadInputError(f"{path.name}: {tail}")
        partial.replace(done)
    about = msgspec.json.decode((done / _ABOUT).read_bytes(), type=About)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about.toolchain.items()))
    notes = (f"{format_.value} source, turned into ONNX by {versions}", *about.notes, *_compared(path, done))
    return Imported(path=done / GRAPH, format=format_, notes=notes)


def _compared(path: Path, done: Path) -> tuple[str, ...]:
    if not (done / _ANSWERS).exists():
        return ("the ONNX was not compared with the source in its own framework",)
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    with np.load(done / _ANSWERS, allow_pickle=False) as arrays:
        feeds: dict[str, Array] = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in/")}
        wanted: dict[str, Array] = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out/")}
    try:
        session = InferenceSession(str(done / GRAPH), options, providers=["CPUExecutionProvider"])
        got = dict(zip(wanted, session.run(list(wanted), feeds), strict=True))
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has its own exception per failure
        line = " ".join(str(error).split())[:300]
        raise BadInputError(f"{path.name}: ONNX Runtime does not run the ONNX made of it: {line}") from error
    worst = 0.0
    for name, want in wanted.items():
        if got[name].shape != want.shape:
            raise BadInputError(
                f"{path.name}: the ONNX made of it answers {list(got[name].shape)} at {name!r}, the source {list(want.shape)}"
            )
        exact = want.astype(np.float64)
        distance = float(np.abs(got[name].astype(np.float64) - exact).max(initial=0.0))
        scale = max(float(np.abs(exact).max(initial=0.0)), 1e-6)
        if not distance <= _CLOSE * scale:
            raise BadInputError(
                f"{path.name}: the ONNX made of it answers otherwise than the source: {name!r} differs by {distance:.3g}, "
                f"{_CLOSE * scale:.3g} is allowed"
            )
        worst = max(worst, distance / scale)
    return (f"the ONNX answers as the source does in its own framework, within {worst:.1e} of the largest value",)
