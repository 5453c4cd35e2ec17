"""The least of HTTP/1.1 and of the Open Inference Protocol that a load generator needs, so that it costs little beside what it measures."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_RESPONSE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gateway said: the status, and for 200 the logits and the build that computed them."""

    status: int
    logits: NDArray[np.float32] | None = None
    build: str = ""
    target: str = ""
    version: str = ""


def infer_request(model: str, image: NDArray[np.float32], host: str) -> bytes:
    """A whole HTTP request with one FP32 image [1, 1, 32, 32] as a binary tensor, asking for binary logits."""
    data = np.ascontiguousarray(image, np.float32).tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, *image.shape[-3:]],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + len(data)}\r\n\r\n"
    ).encode() + (header + data)


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        return cls(*await asyncio.open_connection(host, port))

    async def ask(self, request: bytes) -> Answer:
        """Raises OSError or `asyncio.IncompleteReadError` if the gateway hangs up, ValueError if it talks nonsense."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(headers.get("content-length", "0"))
        if length > MAX_RESPONSE_BYTES:
            raise ValueError(f"a response of {length} bytes")
        body = await self._reader.readexactly(length)
        status = int(head[0].split()[1])
        if status != 200:
            return Answer(status)
        return _answer(body, int(headers.get("inference-header-content-length", length)))

    def close(self) -> None:
        self._writer.close()


def _answer(body: bytes, header_length: int) -> Answer:
    try:
        header = json.loads(body[:header_length])
        output = header["outputs"][0]
        size = output["parameters"]["binary_data_size"]
        logits = np.frombuffer(body[header_length : header_length + size], np.float32).reshape(output["shape"])
        parameters = header.get("parameters", {})
    except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"not an inference response: {error}") from error
    return Answer(
        200,
        logits,
        parameters.get("covey_build", ""),
        parameters.get("covey_target", ""),
        header.get("model_version", ""),
    )
