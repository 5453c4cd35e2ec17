"""Which requests go together, and that each gets its own rows back."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.gateway.batching import goes_with, merged, parted, rows_of, together
from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.runner_process import Reply
from covey_agent.runner.protocol import Result, TensorInfo
from covey_contract.manifest import DataType, Manifest, TensorSpec
from covey_hil.testing.manifests import floats, made_manifest


def manifest(max_batch: int = 8, **changes: object) -> Manifest:
    two = (floats("x", -1, 2), TensorSpec(name="y", datatype=DataType.UINT8, shape=(-1,)))
    return made_manifest(**{"inputs": two, "outputs": two, "max_batch": max_batch, **changes})


def request(rows: list[int], *, swapped: bool = False, outputs: tuple[str, ...] = ("x", "y")) -> InferRequest:
    """Row n of `x` is (n, -n), of `y` n."""
    x = b"".join(struct.pack("<2f", row, -row) for row in rows)
    infos = [TensorInfo("x", "FP32", (len(rows), 2), len(x)), TensorInfo("y", "UINT8", (len(rows),), len(rows))]
    data: list[bytes] = [x, bytes(rows)]
    if swapped:
        infos.reverse()
        data.reverse()
    return InferRequest("", tuple(infos), tuple(data), outputs, frozenset(), None)


def echo(one: InferRequest) -> Reply:
    """A build that gives back what it was given."""
    return Reply(Result(1, 0.5, one.inputs), b"".join(bytes(piece) for piece in one.data))


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 255), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=6)
)
def test_every_caller_gets_its_own_rows(callers: list[tuple[list[int], bool]]) -> None:
    requests = [request(rows, swapped=swapped) for rows, swapped in callers]
    whole = merged(requests)
    assert rows_of(whole) == sum(len(rows) for rows, _ in callers)
    assert whole.fits(manifest())
    parts = parted(echo(whole), [rows_of(one) for one in requests])
    assert parts is not None
    for (rows, _), part in zip(callers, parts, strict=True):
        # By the order of the first one's inputs.
        assert part.payload == b"".join(map(bytes, request(rows, swapped=callers[0][1]).data))
        assert [info.shape[0] for info in part.result.outputs] == [len(rows)] * 2
        assert part.result.compute_s == 0.5


def test_an_output_with_other_rows_is_not_parted() -> None:
    whole = merged([request([1]), request([2])])
    reply = echo(whole)
    short = Reply(msgspec.structs.replace(reply.result, outputs=(TensorInfo("x", "FP32", (1, 4), 16),)), bytes(16))
    assert parted(short, [1, 1]) is None


def test_who_goes_together() -> None:
    first = request([1, 2])
    waiting = [request([3]), request([4, 5, 6]), request([7, 8, 9])]
    assert together(first, waiting, manifest(8)) == 2  # the third would be the ninth row
    assert together(first, waiting, manifest(9)) == 3
    assert together(first, waiting, manifest(2)) == 0
    assert together(first, waiting, manifest(1)) == 0
    # The order of arrival is kept.
    assert together(first, [request([3], outputs=("x",)), request([4])], manifest(8)) == 0


def test_who_does_not_go_with_another() -> None:
    first = request([1])
    assert goes_with(first, request([1, 2], swapped=True))
    other_shape = (TensorInfo("x", "FP32", (1, 3), 12), first.inputs[1])
    uneven = (TensorInfo("x", "FP32", (2, 2), 16), first.inputs[1])
    for inputs in (other_shape, uneven, first.inputs[:1]):
        assert not goes_with(first, InferRequest("", inputs, (), first.outputs, frozenset(), None))


@pytest.mark.parametrize("shape", [(1, 2), (2, -1), ()])
def test_a_manifest_promises_rows_only_where_there_are_some(shape: tuple[int, ...]) -> None:
    tensor = (TensorSpec(name="x", datatype=DataType.FP32, shape=shape),)
    with pytest.raises(ValueError, match="max_batch"):
        manifest(8, outputs=tensor)
    moved = (TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 2), permutation=(1, 0)),)
    with pytest.raises(ValueError, match="max_batch"):
        manifest(8, inputs=moved)
