"""`covey-agent infer`: one request to the local gateway by the Open Inference Protocol, from a .json or .npy file."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covey_agent.errors import AgentError, UsageError

_MAX_FILE = 256 << 20
_MAX_ANSWER = 256 << 20
# Data types of the Open Inference Protocol by NumPy's kind and size.
_DATATYPES = {
    "b1": "BOOL",
    "u1": "UINT8",
    "u2": "UINT16",
    "u4": "UINT32",
    "u8": "UINT64",
    "i1": "INT8",
    "i2": "INT16",
    "i4": "INT32",
    "i8": "INT64",
    "f2": "FP16",
    "f4": "FP32",
    "f8": "FP64",
}


def infer(port: int, model: str, file: Path, input_name: str | None, timeout_s: float = 60.0) -> dict[str, Any]:
    """The gateway's answer. Raises `UsageError` for a bad file, `AgentError` for what the gateway refuses."""
    try:
        if file.stat().st_size > _MAX_FILE:
            raise UsageError(f"{file} is larger than {_MAX_FILE >> 20} MiB")
        if file.suffix == ".npy":
            header, tail = _from_npy(file, input_name or _first_input(port, model, timeout_s))
        else:
            header, tail = file.read_bytes(), b""
            if not isinstance(json.loads(header), dict):
                raise UsageError(f'{file} is not a request: {{"inputs": [...]}}')
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    headers = {"Content-Type": "application/json"}
    if tail:
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return exchange(port, "POST", f"/v2/models/{quote(model, safe='')}/infer", timeout_s, header + tail, headers)


def _from_npy(file: Path, name: str) -> tuple[bytes, bytes]:
    """Header and raw little-endian bytes of one input, read without NumPy: version 1.0 to 3.0 of the NPY format."""
    import ast

    data = file.read_bytes()
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise UsageError(f"{file} is not a .npy file")
    length, start = (
        (*struct.unpack_from("<H", data, 8), 10) if data[6] == 1 else (*struct.unpack_from("<I", data, 8), 12)
    )
    told = ast.literal_eval(data[start : start + length].decode("utf-8"))
    kind = str(told["descr"])
    datatype = _DATATYPES.get(kind[1:])
    if datatype is None or kind[0] == ">" or told["fortran_order"]:
        raise UsageError(
            f"{file}: arrays of {kind} in this order cannot be sent; save it as a C-contiguous little-endian one"
        )
    raw = data[start + length :]
    tensor = {
        "name": name,
        "shape": list(told["shape"]),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    return json.dumps({"inputs": [tensor]}).encode(), raw


def _first_input(port: int, model: str, timeout_s: float) -> str:
    described = exchange(port, "GET", f"/v2/models/{quote(model, safe='')}", timeout_s)
    inputs = described.get("inputs") or []
    if len(inputs) != 1:
        raise UsageError(f"{model} has {len(inputs)} inputs; send a .json request")
    return str(inputs[0]["name"])


def exchange(
    port: int,
    method: str,
    path: str,
    timeout_s: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One request to the local gateway; its answer as JSON. Raises `AgentError` for what it refuses."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise AgentError(f"the gateway on port {port} does not answer: {error}") from error
    finally:
        connection.close()
    try:
        document = json.loads(data)
    except ValueError as error:
        raise AgentError(f"the gateway's answer ({answer.status}) cannot be read: {error}") from error
    if answer.status != 200 or not isinstance(document, dict):
        words = document.get("error") if isinstance(document, dict) else None
        raise AgentError(f"the gateway refuses ({answer.status}): {words or 'no reason given'}")
    return document
