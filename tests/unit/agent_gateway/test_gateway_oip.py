"""The protocol's codec: what goes in comes out, and hostile bytes give a `BadRequest`, nothing else."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.oip import parse_request, render_answer
from covey_agent.gateway.oip_elements import pack, unpack
from covey_agent.gateway.oip_metadata import model_config, model_metadata
from covey_agent.gateway.shared_memory import SharedMemory
from covey_agent.runner.protocol import TensorInfo
from covey_contract.manifest import DataType, Manifest, TensorSpec
from covey_hil.testing.manifests import made_manifest

VISIT = SharedMemory(0).visit()  # nothing is registered


def manifest(
    datatype: DataType = DataType.FP32, shape: tuple[int, ...] = (-1, 2), outputs: tuple[str, ...] = ("y", "z")
) -> Manifest:
    return made_manifest(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape),),
        outputs=tuple(TensorSpec(name=name, datatype=datatype, shape=shape) for name in outputs),
        metadata={"mean": "0.5"},
    )


def request(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4.5]}
    return json.dumps({"inputs": [tensor], **changes}).encode()


def test_json_request() -> None:
    parsed = parse_request(request(id="a", parameters={"timeout": 2_000_000}), None, manifest(), VISIT)
    assert parsed.id == "a"
    assert parsed.inputs == (TensorInfo("x", "FP32", (2, 2), 16),)
    assert bytes(parsed.data[0]) == struct.pack("<4f", 1, 2, 3, 4.5)
    assert parsed.outputs == ("y", "z")
    assert parsed.binary == frozenset()
    assert parsed.timeout_s == 2.0


def test_nested_data_is_row_major() -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]}
    parsed = parse_request(json.dumps({"inputs": [tensor]}).encode(), None, manifest(), VISIT)
    assert bytes(parsed.data[0]) == struct.pack("<4f", 1, 2, 3, 4)


def test_binary_request_is_not_copied() -> None:
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
    ).encode()
    body = head + b"12345678"
    parsed = parse_request(body, len(head), manifest(), VISIT)
    assert isinstance(parsed.data[0], memoryview)
    assert parsed.data[0].obj is body
    assert bytes(parsed.data[0]) == b"12345678"


def test_output_selection() -> None:
    parsed = parse_request(
        request(
            parameters={"binary_data_output": True},
            outputs=[{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}],
        ),
        None,
        manifest(),
        VISIT,
    )
    assert parsed.outputs == ("z", "y")
    assert parsed.binary == {"z"}
    infos = (TensorInfo("z", "FP32", (1, 2), 8), TensorInfo("y", "FP32", (1, 2), 8))
    data = [memoryview(struct.pack("<2f", 1, 2)), memoryview(struct.pack("<2f", 3, 4))]
    body, length = render_answer(parsed, manifest(), "d" * 64, infos, data, VISIT)
    answer = json.loads(bytes(body[0]))
    assert length == len(body[0])
    assert bytes(body[1]) == bytes(data[0])
    assert answer["outputs"] == [
        {"name": "z", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 4.0]},
    ]
    assert "id" not in answer


def test_infinity_is_not_said_in_json() -> None:
    parsed = parse_request(request(), None, manifest(outputs=("y",)), VISIT)
    info = TensorInfo("y", "FP32", (1, 2), 8)
    with pytest.raises(ValueError, match="infinite"):
        render_answer(parsed, manifest(), "d" * 64, [info], [memoryview(struct.pack("<2f", 1, float("inf")))], VISIT)


@pytest.mark.parametrize("datatype", list(DataType))
def test_every_type_goes_both_ways(datatype: DataType) -> None:
    values = [True, False] if datatype is DataType.BOOL else [0, 1, 100]
    packed = pack("x", list(values), datatype)
    assert len(packed) == len(values) * datatype.itemsize
    assert unpack(packed, datatype) == values


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([256], DataType.UINT8),
        ([-1], DataType.UINT64),
        ([1.5], DataType.INT32),
        ([1 << 70], DataType.INT64),
        ([2], DataType.BOOL),
        ([1e6], DataType.FP16),
        (["1"], DataType.FP32),
        ([None], DataType.FP32),
        ([1 << 2000], DataType.FP64),
    ],
)
def test_numbers_that_do_not_fit(values: list[Any], datatype: DataType) -> None:
    with pytest.raises(BadRequest):
        pack("inputs[0]", values, datatype)


def test_data_far_longer_than_the_shape_is_not_even_decoded() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1] * 10_000}
    with pytest.raises(BadRequest, match="too long"):
        parse_request(json.dumps({"inputs": [tensor]}).encode(), None, manifest(), VISIT)


def test_a_request_fits_builds_of_one_signature() -> None:
    parsed = parse_request(request(), None, manifest(), VISIT)
    assert parsed.fits(manifest(shape=(2, 2)))
    assert not parsed.fits(manifest(shape=(3, 2)))
    assert not parsed.fits(manifest(DataType.FP16))
    assert not parsed.fits(manifest(outputs=("y",)))


def test_metadata() -> None:
    metadata = model_metadata(manifest(), "d" * 64)
    assert metadata["parameters"] == {"covey_build": "d" * 64, "covey_target": "onnxruntime-fp32", "mean": "0.5"}
    assert model_config(manifest())["output"][0]["data_type"] == "TYPE_FP32"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["x", "y", "z", "q", ""])
TENSORS = st.fixed_dictionaries(
    {
        "name": NAMES | JSON_VALUES,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | JSON_VALUES,
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8"]) | JSON_VALUES,
    },
    optional={
        "data": st.lists(st.integers() | st.floats(), max_size=6) | JSON_VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region"]), st.integers(-5, 40) | JSON_VALUES
        ),
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON_VALUES},
    optional={
        "id": st.text(max_size=5) | JSON_VALUES,
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES}), max_size=3) | JSON_VALUES,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "binary_data_output"]), JSON_VALUES) | JSON_VALUES,
    },
)


@settings(deadline=None)
@given(REQUESTS, st.binary(max_size=40), st.booleans())
def test_any_request_is_parsed_or_refused(document: Any, rest: bytes, announced: bool) -> None:
    head = json.dumps(document).encode()
    try:
        parsed = parse_request(head + rest, len(head) if announced else None, manifest(), VISIT)
    except BadRequest:
        return
    assert [info.size for info in parsed.inputs] == [len(data) for data in parsed.data]


@settings(deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(-10, 300))
def test_any_bytes_are_refused(body: bytes, header_bytes: int | None) -> None:
    with pytest.raises(BadRequest):
        parse_request(body, header_bytes, manifest(), VISIT)
