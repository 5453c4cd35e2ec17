"""What onnx2tf calls the source's tensors."""

from __future__ import annotations

import pytest

from covey_converters.backends.tflite_graph import _made_of, called
from tests.unit.converters.test_heads import graph


@pytest.mark.parametrize(
    ("source", "flatbuffer"),
    [
        ("/model.0/conv/Conv_output_0", "/model.0/conv/Conv_output_nhwc"),
        ("/model.22/Concat_1_output_0", "/model.22/Concat_1_output_0_nhwc"),
        ("scores", "serving_default_scores:0"),
        ("net/image:1", "net_image:1"),
    ],
)
def test_the_same_tensor(source: str, flatbuffer: str) -> None:
    assert _made_of(source) == _made_of(flatbuffer)


def test_a_tensor_may_be_called_by_who_takes_it() -> None:
    operators = graph("Conv:x>a Clip:a>b Conv:b>c Conv:b>d")
    names = called({"a", "b"}, operators)
    assert _made_of("c_input_nhwc") in names
    assert _made_of("d_input_nhwc") in names
    assert _made_of("x") not in names
    assert _made_of("c_output_nhwc") not in names
