"""What applications, the control process and runners send to the gateway, and what callers send to its gRPC door."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from covey_agent.gateway import control_api
from covey_agent.gateway.activity import Activity
from covey_agent.gateway.batching import merged, parted, rows_of, together
from covey_agent.gateway.control import ControlServer
from covey_agent.gateway.errors import BadRequest, MemoryFullError
from covey_agent.gateway.http_messages import HttpRequest
from covey_agent.gateway.http_protocol import Connections
from covey_agent.gateway.inference import refuse
from covey_agent.gateway.locks import Locks
from covey_agent.gateway.models import Models
from covey_agent.gateway.oip import parse_request, render_answer
from covey_agent.gateway.routes import Routes
from covey_agent.gateway.runner_process import Reply
from covey_agent.gateway.settings import Limits, Settings
from covey_agent.gateway.shared_memory import Registration, SharedMemory
from covey_agent.runner import protocol
from covey_contract.reasons import Reason
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders.messages import MANIFEST, A

_APPLICATION = "an application on the device"
_LIMITS = Limits(header_bytes=2000, body_bytes=4000, buffered_bytes=6000, connections=2)
_ROWS = struct.pack("<4f", 1, 2, 3, 4)
_JSON = b'{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"data":[[1,2.5],[3,-4e2]]}],"outputs":[{"name":"y"}]}'
_BINARY = (
    b'{"parameters":{"timeout":1000,"binary_data_output":true},"inputs":[{"name":"x","datatype":"FP32","shape":[2,2],'
    b'"parameters":{"binary_data_size":16}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
)
_SHARED = (
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"parameters":{"shared_memory_region":"r","shared_memory_byte_size":16,'
    b'"shared_memory_offset":8}}],"outputs":[{"name":"z","parameters":{"shared_memory_region":"r","shared_memory_byte_size":96}}]}'
)


# --- the inference protocol -------------------------------------------------------------------------------------------


def _memory(folder: Path) -> SharedMemory:
    """With one registered region."""
    (folder / "object").write_bytes(bytes(256))
    memory = SharedMemory(1 << 16, folder)
    memory.register("r", Registration(key="/object", byte_size=256))
    return memory


def _infer(folder: Path, *, binary: bool) -> Made:
    """A request of the Open Inference Protocol, and the answer to it."""
    memory = _memory(folder)
    outputs = [
        protocol.TensorInfo("y", "FP32", (2, 10), 80),
        protocol.TensorInfo("z", "INT64", (2, 2, 3), 96),
    ]
    answers = {info.name: memoryview(bytes(info.size)) for info in outputs}

    def read(data: bytes) -> object:
        header_bytes = None
        if binary:  # the first two bytes: how long the JSON part is said to be
            header_bytes, data = int.from_bytes(data[:2], "little"), data[2:]
        with memory.visit() as visit:
            request = parse_request(data, header_bytes, MANIFEST, visit)
            assert sum(map(len, request.data)) == sum(info.size for info in request.inputs)
            wanted = [info for info in outputs if info.name in request.outputs]
            render_answer(request, MANIFEST, A, wanted, [answers[info.name] for info in wanted], visit)
        assert memory.held == 0
        return request

    if not binary:
        return Made(read, (_JSON, _SHARED))
    return Made(read, tuple(len(head).to_bytes(2, "little") + head + _ROWS for head in (_BINARY, _JSON)))


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def _routes(folder: Path) -> tuple[asyncio.AbstractEventLoop, Routes, Models]:
    """The gateway's own, without a model. In a loop of its own."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    (folder / "shm").mkdir()
    settings = Settings(run_dir=folder, limits=_LIMITS)
    models = Models(settings, loop.time)
    locks = Locks(folder / "locks.json", lambda: 1)
    memory = _memory(folder / "shm")
    return loop, Routes(models, _LIMITS, loop.time, activity=Activity(loop.time), locks=locks, memory=memory), models


def _http(folder: Path) -> Made:
    """Bytes in one to three pieces, then the end of the connection: answered, and nothing stays behind."""
    loop, routes, _ = _routes(folder)
    connections = Connections(routes.handle, refuse, _LIMITS, loop.time)

    async def converse(data: bytes) -> bytes:
        wire, connection = _Wire(), connections.accept()
        connection.connection_made(wire)
        third = max(len(data) // 3, 1) if data[:1] > b"P" else max(len(data), 1)
        for at in range(0, len(data), third):
            piece = data[at : at + third]
            connection.get_buffer(len(piece))[: len(piece)] = piece
            connection.buffer_updated(len(piece))
            await asyncio.sleep(0)
        connection.eof_received()
        if (task := connection.finish()) is not None:
            await asyncio.wait_for(task, 10)
        connection.connection_lost(None)
        return bytes(wire.written)

    def read(data: bytes) -> object:
        answer = loop.run_until_complete(converse(data))
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
        assert b"HTTP/1.1 500 " not in answer, answer[:300]
        assert connections.buffered == 0
        assert not connections.open
        return answer[:12]

    def request(line: bytes, body: bytes = b"") -> bytes:
        return line + b" HTTP/1.1\r\nHost: covey\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    pages = (
        b"/v2",
        b"/v2/health/ready",
        b"/v2/models/stats",
        b"/v2/models/digits/versions/1.1/ready",
        b"/metrics",
        b"/v2/covey/lock",
    )
    return Made(
        read,
        (
            *(request(b"GET " + page) for page in pages),
            request(b"POST /v2/repository/index"),
            request(b"POST /v2/models/digits/infer", _JSON),
            request(b"POST /v2/covey/lock", b'{"owner":"cell-4","ttl_s":60}'),
            request(b"DELETE /v2/covey/lock", b'{"owner":"cell-4"}'),
            request(b"GET /v2/systemsharedmemory/status"),
            request(b"POST /v2/systemsharedmemory/region/s/register", b'{"key":"/object","offset":8,"byte_size":16}'),
            request(b"POST /v2/systemsharedmemory/region/s/unregister"),
            b"POST /v2/models/digits/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            b"POST /v2 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nxGET /v2 HTTP/1.1\r\n\r\n",
        ),
    )


def _control(folder: Path) -> Made:
    loop, _, models = _routes(folder)
    door = ControlServer(
        models,
        activity=Activity(loop.time),
        locks=Locks(folder / "more-locks.json", lambda: 1),
        started_ms=1,
        http_port=8000,
        stop=lambda: None,
        max_connections=1,
    )
    orders: tuple[control_api.Request, ...] = (
        control_api.Load(model="digits", build=A, folder=str(folder)),
        control_api.Switch(model="digits", build=A),
        control_api.Settle(model="digits"),
        control_api.Revert(model="digits", reason=Reason.RUNNER_CRASHED),
        control_api.Unload(model="digits"),
        control_api.GetStatus(),
        control_api.Collect(),
        control_api.Shutdown(),
    )

    def read(data: bytes) -> object:
        answer = loop.run_until_complete(door.answer(data))
        if isinstance(answer, control_api.Failure) and answer.reason is Reason.INTERNAL:
            assert "is loaded" in answer.detail, answer.detail
        return type(answer)

    return Made(read, tuple(map(msgspec.json.encode, orders)))


# --- runners ----------------------------------------------------------------------------------------------------------

_RESULT = protocol.Result(
    3,
    0.001,
    (protocol.TensorInfo("y", "FP32", (2, 2), 16),),
    (protocol.Seen([1, 2], [3, 4], []),),
    (protocol.InputFlag.NAN,),
)


def _frames(_: Path, *, to_runner: bool) -> Made:
    """A stream of frames, and their payloads cut into tensors."""
    infer = protocol.Infer(3, (protocol.TensorInfo("x", "FP32", (2, 2), 16),), ("y",))
    told: tuple[bytes, ...]
    if to_runner:
        told = (protocol.encode_frame(protocol.Start(True, True, 1)), protocol.encode_frame(infer, [_ROWS]))
    else:
        error = protocol.Error(4, protocol.ErrorKind.BAD_OUTPUT, "NaN")
        told = (
            protocol.encode_frame(_RESULT, [_ROWS]),
            protocol.encode_frame(error),
            protocol.encode_frame(protocol.Ready(1.0, 2.0)),
        )
    decoder: Any = protocol.to_runner if to_runner else protocol.from_runner

    def read(data: bytes) -> object:
        buffer = protocol.FrameBuffer(decoder)
        found = None
        for message, payload in buffer.feed(data):
            found = message
            tensors = message.inputs if isinstance(message, protocol.Infer) else getattr(message, "outputs", ())
            protocol.split_payload(tensors, payload)
        return found

    return Made(read, (*told, b"".join(told)))


def _header(_: Path) -> Made:
    """A runner's answer, whose rows go back to the requests that rode together."""
    rows = [1, 1]

    def read(data: bytes) -> object:
        found = protocol.decode_header(protocol.from_runner, data)
        if isinstance(found, protocol.Result):
            payload = bytes(max(0, min(sum(info.size for info in found.outputs), 1 << 16)))
            parted(Reply(found, payload), rows)
        return found

    return Made(
        read, (msgspec.msgpack.encode(_RESULT), msgspec.msgpack.encode(protocol.Failed(Reason.LOAD_FAILED, "no")))
    )


def _batch(folder: Path) -> Made:
    """Two requests that may be computed together."""
    memory = _memory(folder)
    first = parse_request(_JSON, None, MANIFEST, memory.visit())

    def read(data: bytes) -> object:
        with memory.visit() as visit:
            other = parse_request(data, None, MANIFEST, visit)
        if together(first, [other], MANIFEST):
            both = merged([first, other])
            assert both.inputs[0].shape[0] == rows_of(first) + rows_of(other)
            assert sum(map(len, both.data)) == both.inputs[0].size
        return other

    return Made(read, (_JSON,))


# --- gRPC -------------------------------------------------------------------------------------------------------------


class _Context:
    """As much of a call as the service asks for."""

    def __init__(self) -> None:
        self.code: object = None

    def time_remaining(self) -> float | None:
        return 1.5

    def abort(self, code: object, detail: str) -> None:
        del detail
        self.code = code
        raise _Aborted(str(code))


class _Aborted(Exception):  # noqa: N818  # as gRPC ends a call
    pass


def _grpc(folder: Path) -> Made:
    """A call's name, a zero byte and its request: translated, routed by the gateway's own routes, and translated back."""
    from covey_agent.grpc_door.backend import Answer
    from covey_agent.grpc_door.messages import KINDS
    from covey_agent.grpc_door.service import InferenceService, _guarded

    loop, routes, _ = _routes(folder)
    memory = _memory(folder)

    class Inside:
        def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
            if path.endswith("/infer"):
                header = int((headers or {})["inference-header-content-length"])
                with memory.visit() as visit:
                    parse_request(body, header, MANIFEST, visit)
            response = loop.run_until_complete(routes.handle(HttpRequest(method, path.encode(), {}, body)))
            assert response.status != 500, response
            return Answer(response.status, {}, b"".join(bytes(piece) for piece in response.body))

    service = InferenceService(Inside())  # type: ignore[arg-type]  # asks in this process
    methods = service._methods()  # noqa: SLF001  # what gRPC would call

    def read(data: bytes) -> object:
        name, _, body = data.partition(b"\0")
        method = methods.get(name.decode("latin-1"))
        if method is None:
            raise _Aborted("there is no such method")
        word = name.decode()
        request = KINDS[f"{word}Request"].FromString(body)
        return _guarded(method, word)(request, _Context()).SerializeToString()

    asked = KINDS["ModelInferRequest"](model_name="digits", model_version="1.1", id="7", raw_input_contents=[_ROWS])
    asked.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    asked.outputs.add(name="y")
    asked.parameters.add(key="timeout").value.int64_param = 1000
    typed = KINDS["ModelInferRequest"](model_name="digits")
    typed.inputs.add(name="x", datatype="FP32", shape=[2, 2]).contents.fp32_contents.extend([1, 2, 3, 4])
    region = KINDS["SystemSharedMemoryRegisterRequest"](name="r", key="/object", offset=8, byte_size=16)
    calls = {
        "ModelInfer": asked,
        "SystemSharedMemoryRegister": region,
        **{
            name: KINDS[f"{name}Request"](name="digits")
            for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "SystemSharedMemoryStatus")
        },
        **{name: KINDS[f"{name}Request"]() for name in ("ServerLive", "ServerMetadata", "RepositoryIndex")},
    }
    seeds = [name.encode() + b"\0" + message.SerializeToString() for name, message in calls.items()]
    return Made(read, (*seeds, b"ModelInfer\0" + typed.SerializeToString()))


def _decode_error() -> tuple[type[Exception], ...]:
    from google.protobuf.message import DecodeError

    return (_Aborted, DecodeError, UnicodeDecodeError)


_OIP = ("covey_agent.gateway.oip", "covey_agent.gateway.shared_memory")
_REFUSES = (BadRequest, MemoryFullError)
_RUNNER = ("covey_agent.runner.protocol",)
DECODERS = (
    Decoder("gateway.infer_json", _APPLICATION, partial(_infer, binary=False), _REFUSES, _OIP, share=Share.MIDDLE),
    Decoder(
        "gateway.infer_binary", _APPLICATION, partial(_infer, binary=True), _REFUSES, _OIP, Form.BYTES, Share.MIDDLE
    ),
    Decoder("gateway.batch", _APPLICATION, _batch, _REFUSES, ("covey_agent.gateway.batching",), share=Share.MIDDLE),
    Decoder(
        "gateway.http",
        _APPLICATION,
        _http,
        (),
        (
            "covey_agent.gateway.http_protocol",
            "covey_agent.gateway.routes",
            "covey_agent.gateway.lock_door",
            "covey_agent.gateway.shared_memory_door",
        ),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder(
        "gateway.control", "the control process", _control, (), ("covey_agent.gateway.control",), share=Share.MIDDLE
    ),
    Decoder(
        "runner.to_runner", "the gateway", partial(_frames, to_runner=True), (protocol.FrameError,), _RUNNER, Form.BYTES
    ),
    Decoder(
        "runner.from_runner", "a runner", partial(_frames, to_runner=False), (protocol.FrameError,), _RUNNER, Form.BYTES
    ),
    Decoder(
        "runner.answer",
        "a runner",
        _header,
        (protocol.FrameError,),
        (*_RUNNER, "covey_agent.gateway.batching"),
        Form.MSGPACK,
    ),
    Decoder(
        "grpc.call",
        _APPLICATION,
        _grpc,
        _decode_error(),
        ("covey_agent.grpc_door.service", "covey_agent.grpc_door.translate"),
        Form.BYTES,
        Share.MIDDLE,
    ),
)
