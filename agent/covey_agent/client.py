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
import mmap
import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DEFAULT_ADDRESS = "127.0.0.1:8090"
# Smaller inputs go with the request itself.
SHARED_MEMORY_FROM = 32 * 1024
_SHM = Path("/dev/shm")  # noqa: S108  # where shm_open(3) keeps its objects
_MAX_HEAD = 64 * 1024
_MAX_ANSWER = 1 << 30
_HEADER_LENGTH = b"inference-header-content-length"
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
_NUMPY_TYPES = {name: np.dtype("?" if code == "b1" else f"<{code}") for code, name in _DATATYPES.items()}
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


class _Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: memoryview


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}


class _Header(msgspec.Struct):
    model_version: str
    outputs: list[_Output]
    parameters: dict[str, Any] = {}


_decode_header = msgspec.json.Decoder(_Header).decode
_encode = msgspec.json.Encoder().encode


class Client:
    """`timeout_s` is for a whole request. Connects when it is first used, and again after the gateway was away."""

    def __init__(
        self, address: str | Path = DEFAULT_ADDRESS, *, timeout_s: float = 10.0, shared_memory: bool = False
    ) -> None:
        self._address = _parse(address)
        self._timeout_s = timeout_s
        self._shared = _SharedRegion() if shared_memory else None
        self._socket: socket.socket | None = None
        self._only_input: dict[str, str] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            if self._shared is not None and self._shared.name is not None:
                with contextlib.suppress(ClientError):
                    self._ask("POST", f"/v2/systemsharedmemory/region/{self._shared.name}/unregister")
            self._disconnect()
        if self._shared is not None:
            self._shared.close()

    # --- what may be asked --------------------------------------------------------------------------------------------

    def infer(self, model: str, inputs: Array | Mapping[str, Array], outputs: Sequence[str] = ()) -> Outputs:
        """Arrays by the model's own names and shapes; a single array for a model of one input. `outputs`: which ones are wanted; none: all.

        Raises `ClientError`; its text names the field where an input does not fit.
        """
        given = inputs if isinstance(inputs, Mapping) else {self._input_of(model): inputs}
        arrays = {name: _wire(name, array) for name, array in given.items()}
        size = sum(array.nbytes for array in arrays.values())
        if self._shared is not None and size >= SHARED_MEMORY_FROM:
            try:
                return self._infer(model, arrays, outputs, self._placed(self._shared, arrays, size))
            except _NoSharedMemoryError:
                self._shared = None  # of another user, another container: not to be had here
        return self._infer(model, arrays, outputs, None)

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
        self,
        model: str,
        arrays: Mapping[str, Array],
        outputs: Sequence[str],
        placed: Mapping[str, Any] | None,
        *,
        again: bool = False,
    ) -> Outputs:
        header = {
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": _DATATYPES[array.dtype.str[1:]],
                    "parameters": placed[name] if placed is not None else {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            "parameters": {"binary_data_output": True},
        }
        body: list[bytes | memoryview] = [_encode(header)]
        head = b"Inference-Header-Content-Length: %d\r\n" % len(body[0])
        if placed is None:
            body += [array.reshape(-1).view(np.uint8).data for array in arrays.values()]
        answer = self._ask("POST", f"/v2/models/{_name(model)}/infer", head, body)
        forgotten = placed is not None and answer.status == 400 and b"no shared memory region" in bytes(answer.body)
        if forgotten and self._shared is not None and not again:
            self._shared.name = None  # the gateway was started anew, or has had too many others since
            placed = self._placed(self._shared, arrays, self._shared.used)
            return self._infer(model, arrays, outputs, placed, again=True)
        _expect(answer)
        return _read(answer)

    def _input_of(self, model: str) -> str:
        if model not in self._only_input:
            names = [str(one["name"]) for one in self.metadata(model)["inputs"]]
            if len(names) != 1:
                raise ClientError(f"{model} has the inputs {', '.join(names)}; give the arrays by name")
            self._only_input[model] = names[0]
        return self._only_input[model]

    def _placed(self, shared: _SharedRegion, arrays: Mapping[str, Array], size: int) -> dict[str, Any]:
        """Copy the arrays into the region, which is made and registered if that is to be done."""
        if shared.name is None or size > shared.size:
            self._register(shared, size)
        return shared.place(arrays)

    def _register(self, shared: _SharedRegion, size: int) -> None:
        if shared.name is not None:
            self._ask("POST", f"/v2/systemsharedmemory/region/{shared.name}/unregister")
        with shared.made(size) as key:
            body = {"key": key, "byte_size": shared.size}
            answer = self._ask("POST", f"/v2/systemsharedmemory/region/{key}/register", body=[_encode(body)])
        if answer.status != 200:
            raise _NoSharedMemoryError
        shared.name = key

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._ask(method, path, body=[_encode(body)] if body is not None else [])
        _expect(answer)
        document: dict[str, Any] = msgspec.json.decode(answer.body)
        return document

    def _ask(self, method: str, path: str, head: bytes = b"", body: Sequence[bytes | memoryview] = ()) -> _Answer:
        """One request and its answer. A connection that the gateway has closed meanwhile is opened again, once."""
        length = sum(len(piece) for piece in body)
        request = b"%s %s HTTP/1.1\r\nHost: covey\r\nContent-Length: %d\r\n%s\r\n" % (
            method.encode(),
            path.encode(),
            length,
            head,
        )
        for last in (self._socket is None, True):
            connection = self._connected()
            try:
                _send(connection, [request, *body])
                return _receive(connection)
            except TimeoutError as error:
                self._disconnect()
                raise ClientError(f"no answer within {self._timeout_s:g} s") from error
            except OSError as error:
                self._disconnect()
                if last:
                    raise ClientError(f"the gateway hung up: {error}") from error
        raise AssertionError("unreachable")

    def _connected(self) -> socket.socket:
        if self._socket is None:
            unix = isinstance(self._address, str)
            connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            try:
                if not unix:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(self._address)
            except OSError as error:
                connection.close()
                raise ClientError(f"no gateway answers at {self._address}: {error}") from error
            self._socket = connection
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _NoSharedMemoryError(Exception):
    """The gateway does not take our regions."""


class _SharedRegion:
    """A memory object that both processes hold. It has a name only until the gateway has opened it, so that nothing is left behind."""

    def __init__(self) -> None:
        self.name: str | None = None  # None: the gateway has none
        self.size = 0
        self.used = 0
        self._map: mmap.mmap | None = None

    @contextlib.contextmanager
    def made(self, size: int) -> Any:
        """A new object of at least that size; its name, which ends with the block."""
        self.close()
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        key = f"covey-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(_SHM / key, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _NoSharedMemoryError from error
        try:
            os.posix_fallocate(descriptor, 0, size)  # rather now than as a SIGBUS later
            self._map, self.size = mmap.mmap(descriptor, size), size
            yield key
        except OSError as error:
            raise _NoSharedMemoryError from error
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                (_SHM / key).unlink()

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Copy the arrays one after the other; each one's parameters for the request."""
        assert self._map is not None  # noqa: S101  # it was made
        places: dict[str, Any] = {}
        offset = 0
        for name, array in arrays.items():
            self._map[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data
            places[name] = {
                "shared_memory_region": self.name,
                "shared_memory_offset": offset,
                "shared_memory_byte_size": array.nbytes,
            }
            offset += array.nbytes
        self.used = offset
        return places

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        self._map, self.name, self.size = None, None, 0


# --- on the wire ------------------------------------------------------------------------------------------------------


def _parse(address: str | Path) -> str | tuple[str, int]:
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
    array = np.ascontiguousarray(array) if array.ndim else array.copy()
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.str[1:] not in _DATATYPES:
        raise ClientError(f"input {name!r}: an array of {array.dtype} is no tensor")
    return array


def _send(connection: socket.socket, pieces: list[bytes | memoryview]) -> None:
    """All of them in as few calls as the socket takes. Raises `OSError`."""
    sent = connection.sendmsg(pieces)
    for piece in pieces:
        if sent < len(piece):
            connection.sendall(memoryview(piece)[sent:])
        sent = max(sent - len(piece), 0)


def _receive(connection: socket.socket) -> _Answer:
    """The gateway says how long each answer is. Raises `OSError`."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionResetError("the connection ended before the answer")
        data += chunk
        if len(data) > _MAX_HEAD and b"\r\n\r\n" not in data[: _MAX_HEAD + 4]:
            raise ConnectionAbortedError("the answer's head is too long")
    first, *lines = bytes(data[:end]).split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = int(headers.get(b"content-length", b"0"))
    if length > _MAX_ANSWER:
        raise ConnectionAbortedError(f"an answer of {length} bytes")
    body = bytearray(length)
    have = len(data) - end - 4
    body[:have] = data[end + 4 :]
    view = memoryview(body)
    while have < length:
        count = connection.recv_into(view[have:])
        if not count:
            raise ConnectionResetError("the connection ended within the answer")
        have += count
    return _Answer(int(first.split(b" ", 2)[1]), headers, view)


def _expect(answer: _Answer) -> None:
    """Raises `ClientError` unless the answer is one."""
    if answer.status == 200:
        return
    try:
        detail = str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        detail = "no reason given"
    after = answer.headers.get(b"retry-after")
    raise ClientError(detail, answer.status, float(after) if after is not None and after.isdigit() else None)


def _read(answer: _Answer) -> Outputs:
    size = int(answer.headers.get(_HEADER_LENGTH, str(len(answer.body)).encode()))
    header = _decode_header(answer.body[:size])
    outputs = Outputs()
    outputs.version = header.model_version
    outputs.build = str(header.parameters.get("covey_build", ""))
    outputs.target = str(header.parameters.get("covey_target", ""))
    for one in header.outputs:
        length = int(one.parameters["binary_data_size"])
        outputs[one.name] = np.frombuffer(answer.body[size : size + length], _NUMPY_TYPES[one.datatype]).reshape(
            one.shape
        )
        size += length
    return outputs
