"""The service's methods: each asks the gateway what HTTP would ask it, and says the answer in gRPC's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import grpc
import msgspec

from covey_agent.gateway.errors import BadRequest
from covey_agent.grpc_door.backend import Answer, Gateway, Unreachable
from covey_agent.grpc_door.messages import KINDS, SERVICE
from covey_agent.grpc_door.translate import infer_response, model_config, request_body

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_HEADER_LENGTH = "inference-header-content-length"
_OK = 200


class _Refused(Exception):
    """The gateway says no."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class InferenceService:
    """Called from the server's threads."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handlers(self) -> grpc.GenericRpcHandler:
        made = {
            name: grpc.unary_unary_rpc_method_handler(
                _guarded(method, name),
                request_deserializer=KINDS[f"{name}Request"].FromString,
                response_serializer=KINDS[f"{name}Response"].SerializeToString,
            )
            for name, method in self._methods().items()
        }
        made["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=KINDS["ModelInferRequest"].FromString,
            response_serializer=KINDS["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, made)

    def _methods(self) -> dict[str, Callable[[Any, grpc.ServicerContext], dict[str, Any] | Any]]:
        return {
            "ServerLive": lambda _request, _context: {"live": self._is("/v2/health/live")},
            "ServerReady": lambda _request, _context: {"ready": self._is("/v2/health/ready")},
            "ModelReady": lambda request, _context: {
                "ready": self._is(_model(request.name, request.version, "/ready"))
            },
            "ServerMetadata": lambda _request, _context: self._get("/v2"),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "SystemSharedMemoryStatus": self._regions,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
        }

    # --- inference ----------------------------------------------------------------------------------------------------

    def _infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        body, header_bytes = request_body(request, context.time_remaining())
        answer = self._gateway.ask(
            "POST",
            _model(request.model_name, request.model_version, "/infer"),
            body,
            {_HEADER_LENGTH: str(header_bytes)},
        )
        _check(answer)
        return infer_response(answer.body, int(answer.headers.get(_HEADER_LENGTH, len(answer.body))))

    def _stream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """One answer for each request, in order; one that fails is said so, and the stream goes on."""
        kind = KINDS["ModelStreamInferResponse"]
        for request in requests:
            try:
                yield kind(infer_response=self._infer(request, context))
            except (BadRequest, _Refused, Unreachable) as error:
                yield kind(error_message=str(error))

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _model_metadata(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        told = self._get(_model(request.name, request.version, ""))
        return {name: told[name] for name in ("name", "versions", "platform", "inputs", "outputs")}

    def _model_config(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        return {"config": model_config(self._get(_model(request.name, request.version, "/config")))}

    def _model_statistics(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Of one model, or of all without a name."""
        path = _model(request.name, request.version, "/stats") if request.name else "/v2/models/stats"
        return self._get(path)

    def _index(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        models = self._get("/v2/repository/index", "POST")
        return {"models": [one for one in models if one["state"] == "READY" or not request.ready]}

    def _regions(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        one = f"region/{quote(request.name, safe='')}/" if request.name else ""
        found = self._get(f"/v2/systemsharedmemory/{one}status")
        return {"regions": [{"key": region["name"], "value": region} for region in found]}

    def _register(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        body = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
        path = f"/v2/systemsharedmemory/region/{quote(request.name, safe='')}/register"
        _check(self._gateway.ask("POST", path, msgspec.json.encode(body)))
        return {}

    def _unregister(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        one = f"region/{quote(request.name, safe='')}/" if request.name else ""
        _check(self._gateway.ask("POST", f"/v2/systemsharedmemory/{one}unregister"))
        return {}

    def _is(self, path: str) -> bool:
        try:
            return self._gateway.ask("GET", path).status == _OK
        except Unreachable:
            return False

    def _get(self, path: str, method: str = "GET") -> Any:
        answer = self._gateway.ask(method, path)
        _check(answer)
        return msgspec.json.decode(answer.body)


def _guarded(
    method: Callable[[Any, grpc.ServicerContext], Any], name: str
) -> Callable[[Any, grpc.ServicerContext], Any]:
    """The method with its refusals as gRPC's codes, and a plain answer as its message."""
    kind = KINDS[f"{name}Response"]

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            answer = method(request, context)
        except BadRequest as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Unreachable as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except _Refused as error:
            context.abort(error.code, str(error))
        return kind(**answer) if isinstance(answer, dict) else answer

    return call


def _model(name: str, version: str, what: str) -> str:
    part = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{part}{what}"


def _check(answer: Answer) -> None:
    """Raises `_Refused` unless the answer is a good one."""
    if answer.status == _OK:
        return
    try:
        detail = str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        detail = f"the gateway answers {answer.status}"
    raise _Refused(_CODES.get(answer.status, grpc.StatusCode.INTERNAL), detail)
