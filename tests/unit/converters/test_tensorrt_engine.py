"""How engines are asked for by each TensorRT, what they are tied to, and the real interface as TensorRT-RTX has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_contract.building import Outcome
from covey_converters.backends.tensorrt_engine import (
    EnginePlan,
    Platform,
    engine_key,
    l4t_release,
    plan,
    profile,
    serialised,
    timing_cache,
)
from covey_converters.isolation import build_isolated
from covey_converters.spec import BuildSpec, Limits
from tests.unit.converters.conftest import MakeModel

ORIN = Platform("8.7", "10.3.0", "36.4.3")
SHAPES = {"image": (1, 3, 224, 224)}


@pytest.mark.parametrize(
    ("major", "precision", "wanted"),
    [
        (8, "fp32", EnginePlan(explicit_batch=True, typed="fp32", flags=("SPARSE_WEIGHTS",))),
        (8, "int8", EnginePlan(explicit_batch=True, typed="int8", flags=("INT8", "SPARSE_WEIGHTS"))),
        (10, "fp16", EnginePlan(explicit_batch=False, typed="fp32", flags=("FP16", "SPARSE_WEIGHTS"))),
        (10, "int8", EnginePlan(explicit_batch=False, typed="int8", flags=("INT8", "SPARSE_WEIGHTS"))),
        (11, "fp16", EnginePlan(explicit_batch=False, typed="fp16", flags=("SPARSE_WEIGHTS",))),
        (11, "int8", EnginePlan(explicit_batch=False, typed="int8", flags=("SPARSE_WEIGHTS",))),
    ],
)
def test_each_generation_is_asked_in_its_own_way(major: int, precision: str, wanted: EnginePlan) -> None:
    assert plan(major, precision) == wanted


def test_a_precision_without_a_plan() -> None:
    with pytest.raises(ValueError, match="no plan for precision 'fp8'"):
        plan(10, "fp8")


def test_everything_that_an_engine_is_tied_to_changes_its_key() -> None:
    key = engine_key("a" * 64, "fp16", SHAPES, ORIN)
    others = [
        engine_key("b" * 64, "fp16", SHAPES, ORIN),
        engine_key("a" * 64, "int8", SHAPES, ORIN),
        engine_key("a" * 64, "fp16", {"image": (1, 3, 320, 320)}, ORIN),
        engine_key("a" * 64, "fp16", SHAPES, Platform("8.9", "10.3.0", "36.4.3")),
        engine_key("a" * 64, "fp16", SHAPES, Platform("8.7", "10.7.0", "36.4.3")),
        engine_key("a" * 64, "fp16", SHAPES, Platform("8.7", "10.3.0", "36.5")),
    ]
    assert len({key, *others}) == 7
    assert engine_key("a" * 64, "fp16", dict(reversed(SHAPES.items())), ORIN) == key


def test_timings_are_kept_by_platform(tmp_path: Path) -> None:
    places = {
        timing_cache(tmp_path, one)
        for one in (ORIN, Platform("8.7", "10.7.0", "36.4.3"), Platform("8.9", "10.3.0", ""))
    }
    assert len(places) == 3
    assert timing_cache(tmp_path, ORIN).name == "tensorrt-timing-8.7-10.3.0-36.4.3.cache"


def test_jetson_linux_says_its_release(tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    assert l4t_release(release) == ""
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert l4t_release(release) == "36.4.3"
    release.write_text("something else")
    assert l4t_release(release) == ""


@pytest.mark.rtx
def test_the_real_interface_takes_the_plan(make_model: MakeModel) -> None:
    """TensorRT-RTX has TensorRT 11's interface and builds without a GPU."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)

    def parse(network: Any) -> None:
        assert tensorrt.OnnxParser(network, logger).parse(make_model().read_bytes())

    def for_ada(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt.ComputeCapability.SM89, 0)

    # Without its timing cache, which TensorRT binds to a device that is not here.
    engine = serialised(tensorrt, logger, plan(11, "fp32"), parse, for_ada, None)
    assert engine is not None
    assert len(engine) > 1000


@pytest.mark.rtx
def test_the_real_interface_takes_a_profile(make_model: MakeModel) -> None:
    """An open batch needs one; without it the network is refused."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    logger = tensorrt.Logger(tensorrt.Logger.INTERNAL_ERROR)
    model = make_model(batch="n").read_bytes()

    def parse(network: Any) -> None:
        assert tensorrt.OnnxParser(network, logger).parse(model)

    def for_ada(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt.ComputeCapability.SM89, 0)

    ranges = profile({"image": (1, 1, 8, 8)}, 4)
    assert serialised(tensorrt, logger, plan(11, "fp32"), parse, for_ada, None, ranges) is not None
    assert serialised(tensorrt, logger, plan(11, "fp32"), parse, for_ada, None) is None
    assert profile({"image": (1, 1, 8, 8)}, 1) == {}


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_typed_graphs_are_fit_for_tensorrt(make_model: MakeModel, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32))
    spec = BuildSpec(
        model="small",
        version="1",
        target=f"tensorrt-rtx-{precision}-sm89",
        source=str(make_model()),
        out=str(tmp_path / "out"),
        work=str(tmp_path / "work"),
        calibration=str(samples),
    )
    report = build_isolated(spec, Limits())
    assert report.outcome is Outcome.CHECKED, report.reason
    assert "built engines for SM 89" in report.reason


@pytest.mark.gpu
def test_a_real_engine_answers_as_its_source(make_model: MakeModel, tmp_path: Path) -> None:
    """Where there is a GPU with TensorRT: built, run, compared, measured."""
    tensorrt = pytest.importorskip(
        "tensorrt", reason="TensorRT is not installed: an engine needs a builder with an NVIDIA GPU"
    )
    try:
        builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    except (AttributeError, RuntimeError, TypeError) as error:
        pytest.skip(f"TensorRT is installed here but finds no GPU: {error}")
    assert builder is not None
    spec = BuildSpec(
        model="small",
        version="1",
        target="tensorrt-fp16",
        source=str(make_model()),
        out=str(tmp_path / "out"),
        work=str(tmp_path / "work"),
    )
    report = build_isolated(spec, Limits(memory_mb=64_000))
    assert list((tmp_path / "work").glob("tensorrt-timing-*.cache"))
    assert report.outcome is Outcome.BUILT, report.reason
    assert report.parity["scores"].cosine > 0.999
