"""Tensors' elements as numbers and as the bytes that travel, C order and little-endian: pure."""

from __future__ import annotations

import struct
from array import array
from typing import Any

from covey_agent.gateway.errors import BadRequest
from covey_contract.manifest import DataType

# Element types as Python's `array` names them; FP16 and BOOL have none and go by `struct`.
ARRAY_CODES = {
    DataType.UINT8: "B",
    DataType.UINT16: "H",
    DataType.UINT32: "I",
    DataType.UINT64: "Q",
    DataType.INT8: "b",
    DataType.INT16: "h",
    DataType.INT32: "i",
    DataType.INT64: "q",
    DataType.FP32: "f",
    DataType.FP64: "d",
}
STRUCT_CODES = {DataType.FP16: "e", DataType.BOOL: "?"}


def pack(field: str, values: list[Any], datatype: DataType) -> bytes:
    """Numbers as raw elements; raises `BadRequest` for what is no number of that type or does not fit it."""
    number = (bool, int, float) if datatype is DataType.BOOL else (int, float)
    if not all(isinstance(value, number) for value in values):
        raise BadRequest(f"{field}.data: has elements that are no {datatype}")
    try:
        if datatype in ARRAY_CODES:
            return array(ARRAY_CODES[datatype], values).tobytes()
        if datatype is DataType.BOOL and any(value not in (0, 1) for value in values):
            raise BadRequest(f"{field}.data: has elements that are no BOOL")
        return struct.pack(f"<{len(values)}{STRUCT_CODES[datatype]}", *values)
    except (OverflowError, TypeError, struct.error) as error:
        raise BadRequest(f"{field}.data: has elements that are no {datatype}: {error}") from error


def unpack(data: bytes | memoryview, datatype: DataType) -> list[Any]:
    """Raw elements as numbers."""
    if datatype in ARRAY_CODES:
        values = array(ARRAY_CODES[datatype])
        values.frombytes(data)
        return values.tolist()
    return list(struct.unpack(f"<{len(data) // datatype.itemsize}{STRUCT_CODES[datatype]}", data))
