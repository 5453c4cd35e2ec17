"""The review of a source: what a good one is, and the one line for each kind of bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from covey_contract.manifest import DataType, TensorSpec
from covey_converters import review
from covey_converters.errors import BadInputError

MakeModel = Callable[..., Path]


def test_a_good_model_is_described(make_model: MakeModel) -> None:
    _, found = review.load(make_model(batch="n"))
    assert found.inputs == (TensorSpec(name="image", datatype=DataType.FP32, shape=(1, 1, 8, 8)),)
    assert found.outputs == (TensorSpec(name="scores", datatype=DataType.FP32, shape=(1, 4)),)
    assert (found.opset, found.nodes, found.parameters) == (17, 4, 36)
    assert found.operators == {"Conv": 1, "Flatten": 1, "GlobalAveragePool": 1, "Relu": 1}
    assert found.notes == ("open dimension 'n' of input 'image' fixed to 1",)


def test_open_shapes_are_fixed_when_asked(make_model: MakeModel) -> None:
    path = make_model(batch="n", side="side")
    with pytest.raises(BadInputError, match=r"dimension 'side' of input 'image' is open; .*--shape image="):
        review.load(path)
    _, found = review.load(path, {"image": (2, 1, 16, 16)})
    assert found.inputs[0].shape == (2, 1, 16, 16)
    assert found.outputs[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ({"picture": (1, 1, 8, 8)}, "no input 'picture'; it has image"),
        ({"image": (1, 8, 8)}, "has 4 dimensions, not 3"),
        ({"image": (1, 3, 8, 8)}, "dimension 1 of input 'image' is 1, not 3"),
    ],
)
def test_shapes_that_do_not_fit(make_model: MakeModel, shapes: dict[str, tuple[int, ...]], line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        review.load(make_model(), shapes)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.onnx", b"", "the file is empty"),
        ("noise.onnx", bytes(range(256)) * 8, "not an ONNX model, or cut short"),
        ("text.onnx", b"this is no model at all\n", "not an ONNX model"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=line) as caught:
        review.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        review.load(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model(make_model: MakeModel, share: float) -> None:
    path = make_model()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInputError, match=r"not an ONNX model|ONNX checker"):
        review.load(path)


def _huge(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def _negative(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [-4, 1, 3, 3]


def _short(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [400, 1, 3, 3]


def _custom(model: Any) -> None:
    model.graph.node[1].domain = "com.example"


def _future(model: Any) -> None:
    model.opset_import[0].version = 99


def _no_inputs(model: Any) -> None:
    del model.graph.input[:]


def _text_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def _huge_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40


def _dangling(model: Any) -> None:
    model.graph.node[3].input[0] = "nobody"


def _outside(model: Any) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../etc/passwd")


def _absolute(model: Any) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")


def _absent(model: Any) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_huge, r"tensor 'kernel' claims the shape .* too large"),
        (_negative, "tensor 'kernel' claims the shape"),
        (_short, "the ONNX checker refuses it"),
        (_custom, "node 'relu' is a custom operator com.example::Relu"),
        (_future, "opset 99; 7 to 26 are supported"),
        (_no_inputs, "has no inputs"),
        (_text_input, "input 'image' is not a tensor of numbers"),
        (_huge_input, "input 'image' claims too large a shape"),
        (_dangling, "the ONNX checker refuses it"),
        (_outside, "outside the model's folder"),
        (_absolute, "outside the model's folder"),
        (_absent, "'weights.bin', which is not there"),
    ],
)
def test_models_that_are_refused(make_model: MakeModel, change: Callable[[Any], None], line: str) -> None:
    with pytest.raises(BadInputError, match=line) as caught:
        review.load(make_model(change=change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("small.onnx: ")
