"""Requests that wait, put together: one inference over the rows of several requests, and each caller's rows back. Pure.

Only for builds whose manifest says how many rows may go together (`Manifest.max_batch`): each row of their outputs depends on the same row
of their inputs and on no other. Nobody waits for others to come: what is put together has been waiting for its turn already.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from covey_agent.gateway.oip import InferRequest
from covey_agent.gateway.runner_process import Reply
from covey_agent.runner.protocol import TensorInfo, split_payload
from covey_contract.manifest import Manifest


def rows_of(request: InferRequest) -> int:
    """Of every input, along its first axis; 0 where they do not agree: then it goes alone."""
    counts = {info.shape[0] for info in request.inputs if info.shape}
    return counts.pop() if len(counts) == 1 and all(info.shape for info in request.inputs) else 0


def goes_with(first: InferRequest, other: InferRequest) -> bool:
    """Whether the other's rows may stand below the first one's: the same outputs, and inputs that differ in their rows alone."""
    if first.outputs != other.outputs or len(first.inputs) != len(other.inputs) or not rows_of(other):
        return False
    theirs = {info.name: info for info in other.inputs}
    return all(
        (info := theirs.get(mine.name)) is not None
        and info.datatype == mine.datatype
        and info.shape[1:] == mine.shape[1:]
        for mine in first.inputs
    )


def together(first: InferRequest, waiting: Sequence[InferRequest], manifest: Manifest) -> int:
    """How many of those who wait, from the first of them on, go with this one. The order of arrival is kept: who does not fit ends it."""
    rows = rows_of(first)
    if not rows or manifest.max_batch <= rows:
        return 0
    for count, other in enumerate(waiting):
        if not goes_with(first, other) or rows + rows_of(other) > manifest.max_batch:
            return count
        rows += rows_of(other)
    return len(waiting)


def merged(requests: Sequence[InferRequest]) -> InferRequest:
    """One request of all rows, in the order of the first one's inputs. Nothing is copied."""
    first, rows = requests[0], sum(map(rows_of, requests))
    infos: list[TensorInfo] = []
    data: list[bytes | memoryview] = []
    for mine in first.inputs:
        size = 0
        for request in requests:
            at = next(index for index, info in enumerate(request.inputs) if info.name == mine.name)
            size += request.inputs[at].size
            data.append(request.data[at])
        infos.append(TensorInfo(mine.name, mine.datatype, (rows, *mine.shape[1:]), size))
    return msgspec.structs.replace(first, inputs=tuple(infos), data=tuple(data), manifest=None)


def parted(reply: Reply, rows: Sequence[int]) -> list[Reply] | None:
    """Each request's rows of the answer; None if an output has not the rows that went in."""
    outputs = reply.result.outputs
    total = sum(rows)
    if any(not info.shape or info.shape[0] != total for info in outputs):
        return None
    tensors = split_payload(outputs, reply.payload)
    parts, begin = [], 0
    for count in rows:
        infos, pieces = [], []
        for info, content in zip(outputs, tensors, strict=True):
            row = info.size // total
            infos.append(TensorInfo(info.name, info.datatype, (count, *info.shape[1:]), row * count))
            pieces.append(content[row * begin : row * (begin + count)])
        result = type(reply.result)(reply.result.id, reply.result.compute_s, tuple(infos))
        parts.append(Reply(result, b"".join(pieces)))
        begin += count
    return parts
