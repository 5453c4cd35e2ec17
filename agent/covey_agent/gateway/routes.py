"""The Open Inference Protocol's paths: which request means what. Errors are `{"error": …}`, as the protocol says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

import covey_contract
from covey_agent.gateway import lock_door, metrics, shared_memory_door
from covey_agent.gateway.activity import Activity
from covey_agent.gateway.errors import NoBuildError
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.http_protocol import Answered
from covey_agent.gateway.inference import MODEL_PATH, Inference, refuse, refused
from covey_agent.gateway.known_heads import KnownHead
from covey_agent.gateway.lock_door import LockDoor
from covey_agent.gateway.locks import Locks
from covey_agent.gateway.model import Model
from covey_agent.gateway.models import Models
from covey_agent.gateway.oip_metadata import model_config, model_metadata
from covey_agent.gateway.settings import Limits
from covey_agent.gateway.shared_memory import SharedMemory
from covey_agent.gateway.shared_memory_door import SharedMemoryDoor

if TYPE_CHECKING:
    from covey_agent.gateway.capture import Capture

_encode = msgspec.json.Encoder().encode


def _json(body: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, [_encode(body)])


class Routes:
    """`clock`: monotonic seconds."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        clock: Callable[[], float],
        *,
        activity: Activity,
        locks: Locks,
        memory: SharedMemory,
        capture: Capture | None = None,
    ) -> None:
        self._models = models
        self._activity = activity
        self._locks = locks
        self._lock_door = LockDoor(locks)
        self._inference = Inference(models, limits, clock, activity=activity, memory=memory, capture=capture)
        self._memory_door = SharedMemoryDoor(memory)

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Never raises."""
        try:
            return await self._route(request)
        except Exception as error:  # noqa: BLE001  # the last seam before the caller
            return refused(error, request.url)

    def quick(self, head: KnownHead, body: memoryview, answered: Answered) -> bool:
        """See `Inference.quick`."""
        return self._inference.quick(head, body, answered)

    async def _route(self, request: HttpRequest) -> HttpResponse:
        path = request.url.partition(b"?")[0].decode("latin-1")
        match = None if path == "/v2/models/stats" else MODEL_PATH.fullmatch(path)
        if match is None:
            if path == lock_door.PATH:
                return await self._lock_door.handle(request)
            if path.startswith(shared_memory_door.PREFIX):
                return self._memory_door.handle(request, path)
            return self._about_server(request.method, path)
        name, version, what = match.groups()
        wanted = "POST" if what == "infer" else "GET"
        if request.method != wanted:
            return _wrong_method(wanted)
        model = self._models.get(name)
        if model is None:
            return refuse(404, f"there is no model {name!r} on this device")
        if what == "ready":
            return self._model_ready(model, version)
        serving = model.active_spec().manifest.version
        if version is not None and version != serving:
            return refuse(404, f"version {version!r} of {name!r} does not serve here; {serving!r} does")
        if what == "infer":
            return await self._inference.answer(model, request)
        return self._about_model(model, what)

    # --- metadata -----------------------------------------------------------------------------------------------------

    def _about_server(self, method: str, path: str) -> HttpResponse:
        wanted = "POST" if path == "/v2/repository/index" else "GET"
        pages: dict[str, Callable[[], HttpResponse]] = {
            "/v2": self._server,
            "/v2/health/live": lambda: _json({"live": True}),
            "/v2/health/ready": self._ready,
            "/v2/repository/index": self._index,
            "/v2/models/stats": self._all_statistics,
            metrics.PATH: self._metrics,
        }
        page = pages.get(path.rstrip("/"))
        if page is None:
            return refuse(404, "there is nothing at this path")
        return page() if method == wanted else _wrong_method(wanted)

    def _server(self) -> HttpResponse:
        extensions = [
            "binary_tensor_data",
            "model_configuration",
            "model_repository",
            "statistics",
            "system_shared_memory",
            "covey_lock",
        ]
        return _json({"name": "covey", "version": covey_contract.__version__, "extensions": extensions})

    def _ready(self) -> HttpResponse:
        """Ready when every model on the device serves; a device without models has nothing to wait for."""
        waiting = [model.name for model in self._models.all() if model.slots.active and not model.is_serving]
        return _json({"ready": not waiting, "waiting_for": waiting}, 503 if waiting else 200)

    def _index(self) -> HttpResponse:
        entries = []
        for model in self._models.all():
            try:
                version, reason = model.active_spec().manifest.version, ""
            except NoBuildError as error:
                version, reason = "", str(error)
            state = "READY" if model.is_serving else "UNAVAILABLE"
            entries.append({"name": model.name, "version": version, "state": state, "reason": reason})
        return _json(entries)

    def _metrics(self) -> HttpResponse:
        found = metrics.families(self._models, self._activity, self._locks)
        return HttpResponse(200, [metrics.render(found)], metrics.CONTENT_TYPE)

    def _all_statistics(self) -> HttpResponse:
        return _json({"model_stats": [_statistics(model) for model in self._models.all() if model.slots.active]})

    def _model_ready(self, model: Model, version: str | None) -> HttpResponse:
        ready = model.is_serving and version in (None, model.active_spec().manifest.version)
        return _json({"name": model.name, "ready": ready}, 200 if ready else 503)

    def _about_model(self, model: Model, what: str | None) -> HttpResponse:
        spec = model.active_spec()
        if what == "config":
            return _json(model_config(spec.manifest))
        if what == "stats":
            return _json({"model_stats": [_statistics(model)]})
        return _json(model_metadata(spec.manifest, spec.build))


def _statistics(model: Model) -> dict[str, Any]:
    spec = model.active_spec()
    totals = model.stats_of(spec).totals
    count = totals.ok

    def duration(seconds: float, count: int = count) -> dict[str, int]:
        return {"count": count, "ns": int(seconds * 1e9)}

    return {
        "name": model.name,
        "version": spec.manifest.version,
        "last_inference": totals.last_ms,
        "inference_count": count,
        "execution_count": totals.computations,
        "inference_stats": {
            "success": duration(totals.queue_s + totals.compute_s),
            "fail": duration(0.0, totals.failed),
            "queue": duration(totals.queue_s),
            "compute_input": duration(0.0),
            "compute_infer": duration(totals.compute_s),
            "compute_output": duration(0.0),
        },
        "batch_stats": [
            {"batch_size": rows, "compute_infer": {"count": number, "ns": 0}}
            for rows, number in sorted(totals.batches.items())
        ],
    }


def _wrong_method(wanted: str) -> HttpResponse:
    return HttpResponse(405, [_encode({"error": f"this path takes {wanted}"})], headers=(("Allow", wanted),))
