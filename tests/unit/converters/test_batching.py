"""Which graphs compute several rows each for itself, and which are made without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_contract.building import Outcome
from covey_contract.manifest import DataType, TensorSpec
from covey_converters import batching, folder
from covey_converters.backend import Array, Built, Source
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.backends.onnxruntime import OnnxRuntimeBackend
from covey_converters.build import build
from covey_converters.prepare import prepare
from covey_converters.samples import Samples, random_samples
from covey_converters.spec import BuildSpec
from tests.unit.converters.conftest import MakeModel

ROWS = 4


def network(*nodes: Any, first: int | str = "n", inputs: int = 1, constants: dict[str, Any] | None = None) -> bytes:
    """x (or x0, x1) [first, 6] -> the nodes -> y [first, 6]."""
    names = ["x"] if inputs == 1 else [f"x{index}" for index in range(inputs)]
    graph = helper.make_graph(
        list(nodes),
        "rows",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, 6]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "values"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    )


def opened(model: bytes, work: Path) -> tuple[Source, tuple[str, ...]]:
    work.mkdir(exist_ok=True)
    path = work / "rows.onnx"
    path.write_bytes(model)
    source, _ = prepare(path, work)
    return batching.opened(source, ROWS, random_samples(source.review.inputs, 8))


node = helper.make_node
WEIGHT = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)


@pytest.mark.parametrize("first", ["n", 1])
def test_a_graph_whose_rows_are_its_own(tmp_path: Path, first: int | str) -> None:
    """Also one that says 1 where nothing in it needs that."""
    source, notes = opened(
        network(node("MatMul", ["x", "w"], ["y"], "m"), first=first, constants={"w": WEIGHT}), tmp_path
    )
    assert notes == ()
    assert source.max_batch == ROWS
    assert source.opened is not None
    assert source.alone().start == source.graph
    assert [spec.shape for spec in source.review.inputs] == [(1, 6)]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        # Its rows are added up, or looked at together.
        (
            network(
                node("ReduceMean", ["x"], ["mean"], "mean", axes=[0], keepdims=1), node("Sub", ["x", "mean"], ["y"], "sub")
            ),
            "differs from that of the row alone",
        ),
        # The batch is folded into another dimension, and back as one row.
        (
            network(node("Reshape", ["x", "one"], ["y"], "fold"), constants={"one": np.array([1, -1], np.int64)}),
            "4 rows give output 'y' the shape [1, 24]",
        ),
        # A shape that holds for one row alone.
        (
            network(node("Reshape", ["x", "shape"], ["y"], "fold"), constants={"shape": np.array([1, 6], np.int64)}),
            "with its first dimension open it does not run",
        ),
        # Requests that do not begin with a row.
        (
            network(node("Transpose", ["x"], ["y"], "turn", perm=[1, 0])),
            "output 'y' has not one row for one request",
        ),
        (network(node("Relu", ["x"], ["y"], "relu"), first=2), "the first dimension of input 'x' is 2"),
    ],
)  # fmt: skip
def test_graphs_that_are_made_without(tmp_path: Path, model: bytes, why: str) -> None:
    source, notes = opened(model, tmp_path)
    assert (source.opened, source.max_batch) == (None, 1)
    [note] = notes
    assert note.startswith("made without batching, though it was asked for: ")
    assert why in note


class Fake:
    """y = f(x), rows together."""

    def __init__(self, answer: Callable[[Array], Array]) -> None:
        self._answer = answer

    def run(self, inputs: Any) -> dict[str, Array]:
        return {"y": self._answer(inputs["x"])}


def rounded(rows: Any) -> Any:
    """By a step that all rows share, as dynamic quantisation finds it."""
    step = max(float(np.abs(rows).max()), 1e-9) / 127
    return (np.round(rows / step) * step).astype(np.float32)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda rows: rows * 2, ""),
        # Less than what INT8 may round otherwise among several rows, and yet the company's doing.
        (rounded, "depends on the rows that come with it"),
        (lambda rows: rows + (0.2 if len(rows) > 1 else 0), "differs from that of the row alone"),
        (lambda rows: rows[:1], "the shape [1, 6]"),
        (lambda rows: np.full_like(rows, np.nan) if np.abs(rows).max() > 1.5 else rows, "depends on the rows"),
    ],
)
def test_rows_that_are_not_their_own_are_caught(answer: Callable[[Any], Any], why: str) -> None:
    samples = random_samples([TensorSpec(name="x", datatype=DataType.FP32, shape=(1, 6))], 8)
    found = batching.mixed(Fake(answer), "int8", samples, ROWS)
    assert bool(found) == bool(why)
    assert why in found


def spec(source: Path, work: Path, **given: Any) -> BuildSpec:
    return BuildSpec(
        model="m",
        version="1",
        target="onnxruntime-fp32",
        source=str(source),
        out=str(work / "out"),
        work=str(work),
        measure_seconds=0.05,
        **given,
    )


def test_a_build_says_how_many_rows_it_takes(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    report = build(spec(make_model(batch="n"), tmp_path / "work", max_batch=ROWS), lambda _: None)
    assert report.outcome is Outcome.BUILT, report.reason
    manifest = folder.read_manifest(tmp_path / "work" / "out")
    assert manifest.max_batch == ROWS
    assert [one.shape for one in (*manifest.inputs, *manifest.outputs)] == [(-1, 1, 8, 8), (-1, 4)]
    assert any("takes up to 4 rows at once" in note for note in report.notes)
    assert folder.problems(tmp_path / "work" / "out") == []


def test_nothing_changes_for_who_does_not_ask(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    build(spec(make_model(batch="n"), tmp_path / "work"), lambda _: None)
    manifest = folder.read_manifest(tmp_path / "work" / "out")
    assert manifest.max_batch == 1
    assert manifest.inputs[0].shape == (1, 1, 8, 8)


class Mixed(OnnxRuntimeSession):
    """Gives each of several rows something of the others."""

    def run(self, inputs: Any) -> dict[str, Array]:
        return {name: rounded(answer) if len(answer) > 1 else answer for name, answer in super().run(inputs).items()}


class Mixing(OnnxRuntimeBackend):
    def open(self, built: Built, *, threads: int, reference: bool = False) -> Mixed:
        return Mixed(built.folder / built.entry, threads=threads, optimise=not reference)


def test_a_build_that_mixes_its_rows_is_made_again_without(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    report = build(spec(make_model(batch="n"), tmp_path / "work", max_batch=ROWS), lambda _: None, Mixing())
    assert report.outcome is Outcome.BUILT, report.reason
    assert folder.read_manifest(tmp_path / "work" / "out").max_batch == 1
    assert any("made without batching, though it was asked for: output 'scores'" in note for note in report.notes)


def test_whole_numbers_get_no_foreign_company() -> None:
    """They may be indices."""
    seen: list[int] = []

    class Indexed:
        def run(self, inputs: Any) -> dict[str, Array]:
            seen.append(int(inputs["x"].max()))
            return {"y": inputs["x"].astype(np.float32)}

    assert batching.mixed(Indexed(), "fp32", Samples({"x": np.arange(24, dtype=np.int64).reshape(4, 1, 6)}), ROWS) == ""
    assert max(seen) == 23
