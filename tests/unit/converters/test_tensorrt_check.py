"""What comes of a target that can only be checked: without a toolchain by a backend of the test's own, and by TensorRT-RTX itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from covey_contract.building import Outcome
from covey_converters.backend import Built, Source
from covey_converters.backends.tensorrt_rtx import TensorRtRtxBackend
from covey_converters.build import build
from covey_converters.errors import ConvertError, RecipeError, UnsupportedError, UnverifiableError
from covey_converters.isolation import build_isolated
from covey_converters.samples import Samples
from covey_converters.spec import BuildSpec, Limits
from tests.unit.converters.conftest import MakeModel

TARGET = "tensorrt-rtx-fp32"


class Ends(TensorRtRtxBackend):
    """Ends every build as it is told."""

    def __init__(self, end: ConvertError) -> None:
        self._end = end

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        del source, target, recipe, calibration, folder
        raise self._end


def spec_for(source: Path, folder: Path) -> BuildSpec:
    work = folder / "work"
    work.mkdir()
    return BuildSpec(
        model="small", version="1", target=TARGET, source=str(source), out=str(folder / "out"), work=str(work)
    )


@pytest.mark.parametrize(
    ("end", "outcome", "reason"),
    [
        (UnverifiableError("fit for SM 89"), Outcome.CHECKED, "fit for SM 89"),
        (UnsupportedError("refuses node 'det'"), Outcome.UNSUPPORTED, "refuses node 'det'"),
        (RecipeError("does not load"), Outcome.FAILED, "no recipe worked; the last one: does not load"),
    ],
)
def test_each_end_has_its_outcome_and_leaves_nothing_to_release(
    make_model: MakeModel, tmp_path: Path, end: ConvertError, outcome: Outcome, reason: str
) -> None:
    report = build(spec_for(make_model(), tmp_path), lambda _: None, Ends(end))
    assert (report.outcome, report.reason) == (outcome, reason)
    assert not (tmp_path / "out" / "manifest.json").exists()


def determinant(model: Any) -> None:
    """Append an operator that ONNX Runtime has and TensorRT has not."""
    model.graph.node.append(helper.make_node("Det", ["image"], ["volume"], name="det"))
    model.graph.output.append(helper.make_tensor_value_info("volume", TensorProto.FLOAT, [1, 1]))


@pytest.mark.rtx
def test_a_graph_that_the_parser_refuses_names_node_and_operator(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    report = build_isolated(spec_for(make_model(change=determinant), tmp_path), Limits())
    assert report.outcome is Outcome.UNSUPPORTED
    assert "TensorRT's parser refuses node 'det' (Det)" in report.reason


@pytest.mark.rtx
def test_a_toolchain_that_takes_the_process_down_is_a_failed_check(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    # So large that a second is too little on fast machines too.
    report = build_isolated(spec_for(make_model(side=1024), tmp_path), Limits(cpu_seconds=1))
    assert report.outcome is Outcome.FAILED
    assert "killed by SIG" in report.reason
