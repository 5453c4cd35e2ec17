"""For applications on the device: NumPy arrays in, NumPy arrays out.

>>> from covey_agent.client import Client                                    # doctest: +SKIP
>>> with Client("/run/covey-agent/inference.sock") as client:                # doctest: +SKIP
...     scores = client.infer("digits", {"image": picture})["logits"]

An address is the path of the gateway's Unix socket, or `HOST:PORT`; the socket is the quicker one. With `shared_memory`, inputs from 32 KiB
on are laid into memory that the gateway reads; where that cannot be had (another user, another container), they go over the socket. It is
off unless asked for, since it pays on some machines only: measure yours. A client belongs to one thread at a time.

It speaks the Open Inference Protocol with its binary tensor extension; nothing here is a secret of Covey's, and any other client of the
protocol will do.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from covey_agent.client_memory import NoSharedMemoryError, SharedRegion
from covey_agent.client_wire import Address, Answer, Array, Connection, Expected, NobodyAnswers, Piece

DEFAULT_ADDRESS = "127.0.0.1:8090"
# Smaller inputs go with the request itself.
SHARED_MEMORY_FROM = 32 * 1024
_HEADER_LENGTH = b"inference-header-content-length"
_NAMES = {
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
# How many kinds of request are remembered; an application that asks in more shapes than that has them made anew.
_KINDS = 64
_NUMPY_TYPES = {name: np.dtype("?" if code == "b1" else f"<{code}") for code, name in _NAMES.items()}
_DATATYPES = {dtype: name for name, dtype in _NUMPY_TYPES.items()}
_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}")


class ClientError(Exception):
    """The gateway does not answer, or refuses. `status` is HTTP's (0: no answer); `retry_after_s` where trying again may help."""

    def __init__(self, detail: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after_s = retry_after_s


class Outputs(dict[str, Array]):
    """The arrays by name, and which build answered: its version, its digest and its target."""

    version: str = ""
    build: str = ""
    target: str = ""


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}


class _Header(msgspec.Struct):
    model_version: str
    outputs: list[_Output]
    parameters: dict[str, Any] = {}


@dataclass(frozen=True)
class _Read:
    """What an answer said, but for its tensors: of each one its name, type, shape and where it begins among them."""

    header: _Header
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]

    def outputs(self, data: bytearray) -> Outputs:
        outputs = Outputs()
        outputs.version = self.header.model_version
        outputs.build = str(self.header.parameters.get("covey_build", ""))
        outputs.target = str(self.header.parameters.get("covey_target", ""))
        for name, dtype, shape, begin in self.tensors:
            outputs[name] = np.ndarray(shape, dtype, data, begin)
        return outputs


@dataclass
class _Kind:
    """Requests that differ in their tensors alone: what they begin with, and how the last one was answered."""

    start: bytes
    expected: Expected | None = None
    read: _Read | None = None


_decode_header = msgspec.json.Decoder(_Header).decode
_encode = msgspec.json.Encoder().encode


class Client:
    """`timeout_s` is for a whole request. Connects when it is first used, and again after the gateway was away."""

    def __init__(
        self, address: str | Path = DEFAULT_ADDRESS, *, timeout_s: float = 10.0, shared_memory: bool = False
    ) -> None:
        self._timeout_s = timeout_s
        self._connection = Connection(_parse(address), timeout_s)
        self._shared = SharedRegion() if shared_memory else None
        self._only_input: dict[str, str] = {}
        self._kinds: dict[object, _Kind] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._shared is not None:
            if self._connection.is_open and self._shared.name is not None:
                with contextlib.suppress(ClientError):
                    self._ask("POST", f"/v2/systemsharedmemory/region/{self._shared.name}/unregister")
            self._shared.close()
        self._connection.close()

    # --- what may be asked --------------------------------------------------------------------------------------------

    def infer(self, model: str, inputs: Array | Mapping[str, Array], outputs: Sequence[str] = ()) -> Outputs:
        """Arrays by the model's own names and shapes; a single array for a model of one input. `outputs`: which ones are wanted; none: all.

        Raises `ClientError`; its text names the field where an input does not fit.
        """
        given = inputs if isinstance(inputs, Mapping) else {self._input_of(model): inputs}
        arrays = {name: _wire(name, array) for name, array in given.items()}
        if self._shared is not None:
            size = sum(array.nbytes for array in arrays.values())
            if size >= SHARED_MEMORY_FROM:
                try:
                    return self._infer_placed(self._shared, model, arrays, outputs, size)
                except NoSharedMemoryError:
                    self._shared = None  # of another user, another container: not to be had here
        return self._infer(model, arrays, outputs)

    def ready(self, model: str | None = None) -> bool:
        """Whether the model serves; without a name, whether all do. False if the gateway does not answer."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{_name(model)}/ready"
        try:
            return self._ask("GET", path).status == 200
        except ClientError:
            return False

    def metadata(self, model: str) -> dict[str, Any]:
        """Names, types and shapes, and under `parameters` what travels with the build: preprocessing, units and the like."""
        return self._json("GET", f"/v2/models/{_name(model)}")

    def lock(self, owner: str, ttl_s: float = 600.0) -> None:
        """Keep the device from changing what it serves, for at most that long; again to renew."""
        self._json("POST", "/v2/covey/lock", {"owner": owner, "ttl_s": ttl_s})

    def unlock(self, owner: str) -> None:
        self._json("DELETE", "/v2/covey/lock", {"owner": owner})

    # --- inference ----------------------------------------------------------------------------------------------------

    def _infer(
        self, model: str, arrays: Mapping[str, Array], outputs: Sequence[str], shared: SharedRegion | None = None
    ) -> Outputs:
        """`shared`: where the arrays lie; without it they go with the request."""
        alike = tuple([(name, array.shape, array.dtype) for name, array in arrays.items()])
        key = (model, alike, tuple(outputs), None if shared is None else shared.name)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _Kind(_start(model, arrays, outputs, shared))
        tensors = () if shared is not None else [array.data for array in arrays.values()]
        answer = self._say([kind.start, *tensors], kind.expected)
        if isinstance(answer, bytearray):
            assert kind.read is not None  # noqa: S101  # it was expected
            return kind.read.outputs(answer)
        _expect(answer)
        size = int(answer.headers.get(_HEADER_LENGTH, str(len(answer.body)).encode()))
        kind.read = _read(answer.body[:size])
        kind.expected = Expected(answer.head + answer.body[:size], len(answer.body) - size)
        return kind.read.outputs(bytearray(answer.body[size:]))

    def _infer_placed(
        self, shared: SharedRegion, model: str, arrays: Mapping[str, Array], outputs: Sequence[str], size: int
    ) -> Outputs:
        """Copy the arrays into the region, which is made and registered if that is to be done, and ask."""
        for last in (False, True):
            if shared.name is None or size > shared.size:
                self._register(shared, size)
            shared.place(arrays)
            try:
                return self._infer(model, arrays, outputs, shared)
            except ClientError as error:
                if last or error.status != 400 or "no shared memory region" not in str(error):
                    raise
                shared.name = None  # the gateway was started anew, or has had too many others since
        raise AssertionError("unreachable")

    def _input_of(self, model: str) -> str:
        if model not in self._only_input:
            names = [str(one["name"]) for one in self.metadata(model)["inputs"]]
            if len(names) != 1:
                raise ClientError(f"{model} has the inputs {', '.join(names)}; give the arrays by name")
            self._only_input[model] = names[0]
        return self._only_input[model]

    def _register(self, shared: SharedRegion, size: int) -> None:
        if shared.name is not None:
            self._ask("POST", f"/v2/systemsharedmemory/region/{shared.name}/unregister")
        with shared.made(size) as key:
            body = {"key": key, "byte_size": shared.size}
            answer = self._ask("POST", f"/v2/systemsharedmemory/region/{key}/register", _encode(body))
        if answer.status != 200:
            raise NoSharedMemoryError
        shared.name = key

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._ask(method, path, _encode(body) if body is not None else b"")
        _expect(answer)
        document: dict[str, Any] = msgspec.json.decode(answer.body)
        return document

    def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        answer = self._say([_head(method, path, len(body)) + body])
        assert isinstance(answer, Answer)  # noqa: S101  # nothing was expected
        return answer

    def _say(self, pieces: Sequence[Piece], expected: Expected | None = None) -> Answer | bytearray:
        try:
            return self._connection.ask(pieces, expected)
        except NobodyAnswers as error:
            raise ClientError(str(error)) from error
        except TimeoutError as error:
            raise ClientError(f"no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            raise ClientError(f"the gateway hung up: {error}") from error


# --- on the wire ------------------------------------------------------------------------------------------------------


def _parse(address: str | Path) -> Address:
    """A path, or host and port; raises `ValueError`."""
    text = str(address)
    if "/" in text:
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{text!r} is neither the path of a socket nor HOST:PORT")
    return host, int(port)


def _name(model: str) -> str:
    """It stands in a path; raises `ClientError`."""
    if not _NAME.fullmatch(model):
        raise ClientError(f"{model!r} is not the name of a model")
    return model


def _wire(name: str, array: Array) -> Array:
    """Contiguous and little-endian; raises `ClientError` for what no tensor is made of."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in _DATATYPES:
        raise ClientError(f"input {name!r}: an array of {array.dtype} is no tensor")
    return array


def _start(model: str, arrays: Mapping[str, Array], outputs: Sequence[str], shared: SharedRegion | None) -> bytes:
    """All of a request but its tensors."""
    inputs, offset = [], 0
    for name, array in arrays.items():
        place = {"shared_memory_offset": offset, "shared_memory_byte_size": array.nbytes}
        inputs.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": _DATATYPES[array.dtype],
                "parameters": {"binary_data_size": array.nbytes}
                if shared is None
                else {"shared_memory_region": shared.name, **place},
            }
        )
        offset += array.nbytes
    header = _encode(
        {
            "inputs": inputs,
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            "parameters": {"binary_data_output": True},
        }
    )
    length = b"Inference-Header-Content-Length: %d\r\n" % len(header)
    size = len(header) + (offset if shared is None else 0)
    return _head("POST", f"/v2/models/{_name(model)}/infer", size, length) + header


def _head(method: str, path: str, size: int, more: bytes = b"") -> bytes:
    lines = b"%s %s HTTP/1.1\r\nHost: covey\r\nContent-Length: %d\r\n%s\r\n"
    return lines % (method.encode(), path.encode(), size, more)


def _expect(answer: Answer) -> None:
    """Raises `ClientError` unless the answer is one."""
    if answer.status == 200:
        return
    try:
        detail = str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        detail = "no reason given"
    after = answer.headers.get(b"retry-after")
    raise ClientError(detail, answer.status, float(after) if after is not None and after.isdigit() else None)


def _read(told: memoryview) -> _Read:
    header = _decode_header(told)
    tensors, begin = [], 0
    for one in header.outputs:
        tensors.append((one.name, _NUMPY_TYPES[one.datatype], one.shape, begin))
        begin += int(one.parameters["binary_data_size"])
    return _Read(header, tuple(tensors))
