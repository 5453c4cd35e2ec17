"""Do pruned models keep their gain? Three networks of the same task, from `train_digits.py`, on every runtime: the dense one, one with half
of the channels inside its blocks cut away (structured), and one with two of every four weights at zero (2:4).

A structured one should stay smaller and faster everywhere. Zeros should stay zeros, so that hardware with sparse kernels can use them
(TensorRT builds with that flag) and a compressed download is smaller; the CPU runtimes compute them like any other weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.matrix import residual
from benchmarks.matrix.subject import Purpose
from covey_contract.building import BuildReport, Outcome
from covey_contract.manifest import check_target
from covey_converters.folder import built_from, read_manifest
from covey_converters.isolation import build_isolated
from covey_converters.measure import Measured, measure
from covey_converters.spec import BuildSpec, Limits

NETWORKS = ("dense", "thin", "sparse")
TARGETS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8", "tflite-fp32", "tflite-int8")
_SECONDS = 1.0
_SAMPLES = {Purpose.CALIBRATION: 96, Purpose.EVALUATION: 400}


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One network on one target. p50 of all networks of a target are measured in turns."""

    network: str
    target: str
    outcome: str
    size: int = 0
    packed: int = 0  # bytes after DEFLATE
    accuracy: float | None = None
    p50_ms: float | None = None
    cpu_ms: float | None = None


def study(folder: Path, say: Callable[[str], None]) -> list[Kept]:
    """Build and measure all; raises `Unavailable` where the networks cannot be trained."""
    folder.mkdir(parents=True, exist_ok=True)
    for purpose, count in _SAMPLES.items():
        drawn = residual.draw(folder, count, purpose)
        labels = {"labels": drawn.labels} if purpose is Purpose.EVALUATION else {}
        np.savez(folder / f"{purpose.name.lower()}.npz", **drawn.arrays, **labels)  # type: ignore[arg-type]  # its stub knows no names
    for network in NETWORKS:
        residual.save(network, folder / f"{network}.onnx")
    found: list[Kept] = []
    for target in TARGETS:
        reports = {network: _build(folder, network, target) for network in NETWORKS}
        found += _measured(folder, target, reports)
        say(f"pruning {target}: {', '.join(f'{name} {one.outcome.value}' for name, one in reports.items())}")
    return found


def _build(folder: Path, network: str, target: str) -> BuildReport:
    spec = BuildSpec(
        model=network,
        version="1",
        target=target,
        source=str(folder / f"{network}.onnx"),
        out=str(folder / network / target),
        work=str(folder / "work"),
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        measure_seconds=0.1,
        recipe_seconds=60.0,
        chain_seconds=150.0,
    )
    return build_isolated(spec, Limits(seconds=300.0))


def _measured(folder: Path, target: str, reports: dict[str, BuildReport]) -> list[Kept]:
    built = [network for network, report in reports.items() if report.outcome is Outcome.BUILT]
    places = {network: folder / network / target for network in built}
    together = [Measured(check_target(target)[0], built_from(place, read_manifest(place))) for place in places.values()]
    golden = next(iter(places.values())) / "golden.npz" if places else folder
    times = dict(zip(built, measure(together, golden, _SECONDS, folder), strict=True)) if built else {}
    return [
        Kept(
            network=network,
            target=target,
            outcome=report.outcome.value,
            size=report.size,
            packed=_packed(places[network]) if network in places else 0,
            accuracy=report.accuracy.build if report.accuracy else None,
            p50_ms=times[network].p50_ms if network in times else None,
            cpu_ms=times[network].cpu_ms if network in times else None,
        )
        for network, report in reports.items()
    ]


def _packed(place: Path) -> int:
    return sum(
        len(zlib.compress((place / file.path).read_bytes(), 6))
        for file in read_manifest(place).files
        if "golden" not in file.path
    )


def section(found: Sequence[Kept]) -> list[str]:
    """Of the page."""
    lines = [
        "## Pruned models keep their gain",
        "",
        "The network of digit-reader, as it is (dense), with half of the channels inside its blocks (structured) and with two of every four",
        "weights at zero (2:4); each trained on after pruning. Faster: processor time of the dense build over that of the pruned one, in turns.",
        "",
        "| target | dense MB | structured MB | 2:4 MB | 2:4 packed / dense packed | structured faster | 2:4 faster | accuracy: dense | structured | 2:4 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for target in dict.fromkeys(one.target for one in found):
        of = {one.network: one for one in found if one.target == target}
        if set(of) != set(NETWORKS):
            continue
        dense, thin, sparse = (of[network] for network in NETWORKS)
        columns = [
            f"`{target}`",
            *(f"{one.size / 1e6:.2f}" if one.size else one.outcome for one in (dense, thin, sparse)),
            f"{sparse.packed / dense.packed:.2f}" if dense.packed and sparse.packed else "",
            *(f"{dense.cpu_ms / one.cpu_ms:.2f}×" if dense.cpu_ms and one.cpu_ms else "" for one in (thin, sparse)),
            *("" if one.accuracy is None else f"{one.accuracy:.3f}" for one in (dense, thin, sparse)),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return [*lines, ""]
