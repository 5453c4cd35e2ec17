"""An inference, from the bytes of its request to those of its answer.

What an application asks again and again is worked out once: by the head of its request which model it means (`Route`), by the JSON part what
that says for the build that serves (`oip.Form`), by the build that answered how the answer begins. What remains of such a request is its
tensors, and it goes through without a task of its own (`Inference.quick`). Everything else, and whatever is wrong, goes the whole way.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from covey_agent.gateway.activity import Activity
from covey_agent.gateway.answering import Answer
from covey_agent.gateway.errors import BadRequest, MemoryFullError, ServeError
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.http_protocol import Answered
from covey_agent.gateway.known_heads import KnownHead
from covey_agent.gateway.model import Model
from covey_agent.gateway.models import Models
from covey_agent.gateway.oip import Form, InferRequest, parts, read_form, render_answer
from covey_agent.gateway.runner_process import BuildSpec
from covey_agent.gateway.settings import Limits
from covey_agent.gateway.shared_memory import SharedMemory, Visit
from covey_agent.runner.protocol import TensorInfo, split_payload
from covey_contract.manifest import MODEL_NAME

if TYPE_CHECKING:
    from covey_agent.gateway.capture import Capture

log = logging.getLogger(__name__)

HEADER_LENGTH = "Inference-Header-Content-Length"
MODEL_PATH = re.compile(
    rf"/v2/models/({MODEL_NAME.pattern})(?:/versions/([^/]{{1,64}}))?(?:/(infer|ready|config|stats))?"
)
# Of all builds together; callers that vary their JSON part more than that are answered the whole way.
MAX_FORMS = 256
MAX_FORM_BYTES = 4096
_encode = msgspec.json.Encoder().encode


def refuse(status: int, detail: str) -> HttpResponse:
    return HttpResponse(status, [_encode({"error": detail})])


@dataclass(frozen=True)
class Route:
    """What the head of an inference says."""

    model: str
    version: str | None
    header_bytes: int


NOWHERE = Route("", None, 0)  # no model has such a name


@dataclass
class Known:
    """A form that was met before. `start`: how an answer with these `outputs` of this `build` begins, up to their `size` bytes."""

    form: Form
    build: str = ""
    outputs: tuple[TensorInfo, ...] = ()
    size: int = 0
    start: bytes = b""


class Inference:
    """`clock`: monotonic seconds."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        clock: Callable[[], float],
        *,
        activity: Activity,
        memory: SharedMemory,
        capture: Capture | None,
    ) -> None:
        self._models = models
        self._limits = limits
        self._clock = clock
        self._activity = activity
        self._memory = memory
        self._capture = capture
        self._forms: dict[tuple[str, bytes], Known] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the whole way ------------------------------------------------------------------------------------------------

    async def answer(self, model: Model, request: HttpRequest) -> HttpResponse:
        """Raises `BadRequest` and `ServeError`."""
        with self._activity, self._memory.visit() as memory:
            deadline = self._clock() + self._limits.deadline_s
            if (encoding := request.headers.get(b"content-encoding", b"identity")) != b"identity":
                return refuse(
                    415, f"Content-Encoding {encoding.decode('latin-1')!r} is not supported; send it uncompressed"
                )
            told, rest = parts(request.body, _header_length(request.headers))
            known = self._known(told, model.active_spec())
            call = known.form.filled(rest, memory)
            answer = await model.infer(call, self._sooner(deadline, call))
            if request.keep_alive:
                return HttpResponse(200, encoded=self.encoded(known, call, answer, memory))
            return self._response(call, answer, memory)

    def _known(self, told: memoryview, spec: BuildSpec) -> Known:
        if len(told) > MAX_FORM_BYTES:
            return Known(read_form(told, spec.manifest))
        key = (spec.build, bytes(told))
        known = self._forms.get(key)
        if known is None:
            known = Known(read_form(told, spec.manifest))
            if known.form.is_lasting:
                if len(self._forms) >= MAX_FORMS:
                    self._forms.clear()
                self._forms[key] = known
        return known

    def _sooner(self, deadline: float, call: InferRequest) -> float:
        return deadline if call.timeout_s is None else min(deadline, self._clock() + call.timeout_s)

    def encoded(self, known: Known, call: InferRequest, answer: Answer, memory: Visit) -> bytes:
        """All of the answer, for a connection that goes on; raises `BadRequest`."""
        spec, (result, payload) = answer
        if known.build == spec.build and known.outputs == result.outputs and known.size == len(payload):
            if self._capture is not None:
                self._capture.offer(spec, call, answer.reply)
            return known.start + payload
        response = self._response(call, answer, memory)
        encoded = response.encode(keep_alive=True)
        if response.status == 200 and call.binary.issuperset(info.name for info in result.outputs):
            known.build, known.outputs, known.size = spec.build, result.outputs, len(payload)
            known.start = encoded[: len(encoded) - len(payload)]
        return encoded

    def _response(self, call: InferRequest, answer: Answer, memory: Visit) -> HttpResponse:
        spec, reply = answer
        if self._capture is not None:
            self._capture.offer(spec, call, reply)
        data = split_payload(reply.result.outputs, reply.payload)
        try:
            body, header_bytes = render_answer(call, spec.manifest, spec.build, reply.result.outputs, data, memory)
        except ValueError as error:
            return refuse(500, str(error))
        if header_bytes is None:
            return HttpResponse(200, body)
        return HttpResponse(200, body, "application/octet-stream", ((HEADER_LENGTH, str(header_bytes)),))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Until it is done: the loop itself does not hold it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the quick way ------------------------------------------------------------------------------------------------

    def quick(self, head: KnownHead, body: memoryview, answered: Answered) -> bool:
        """Answer what can be asked at once (see `http_protocol.Quick`)."""
        route = head.meaning
        if not isinstance(route, Route):
            route = head.meaning = _route(head)
        model = self._models.get(route.model)
        if model is None or (runner := model.free()) is None:
            return False
        spec = runner.spec
        known = self._forms.get((spec.build, bytes(body[: route.header_bytes])))
        if known is None or route.version not in (None, spec.manifest.version):
            return False
        arrived = self._clock()
        placed = known.form.placed_bytes
        visit = self._memory.visit(model.room(runner, placed) if placed else None)
        try:
            call = known.form.filled(body[route.header_bytes :], visit)
        except (BadRequest, MemoryFullError):
            visit.end()
            return False

        self._activity.begin()
        flight = Flight(self, self._activity, known, call, visit, head.url, answered)
        deadline = arrived + self._limits.deadline_s
        model.begin(runner, call, arrived, self._sooner(deadline, call), flight.done)
        return True


@dataclass
class Flight:
    """A request on the quick way, until it is answered."""

    inference: Inference
    activity: Activity
    known: Known
    call: InferRequest
    visit: Visit
    url: bytes
    answered: Answered

    def done(self, outcome: Answer | Awaitable[Answer]) -> None:
        if isinstance(outcome, Answer):
            self._finish(outcome)
        else:
            self.inference.keep(asyncio.get_running_loop().create_task(self._wait(outcome)))

    async def _wait(self, rest: Awaitable[Answer]) -> None:
        try:
            outcome: Answer | Exception = await rest
        except Exception as error:  # noqa: BLE001  # the last seam before the caller
            outcome = error
        self._finish(outcome)

    def _finish(self, outcome: Answer | Exception) -> None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            answer = self.inference.encoded(self.known, self.call, outcome, self.visit)
        except Exception as error:  # noqa: BLE001  # as above
            answer = refused(error, self.url).encode(keep_alive=True)
        self.visit.end()
        self.activity.end()
        self.answered(answer)


def _route(head: KnownHead) -> Route:
    """`NOWHERE` for what may not go the quick way."""
    match = MODEL_PATH.fullmatch(head.url.partition(b"?")[0].decode("latin-1"))
    if match is None or match[3] != "infer" or head.headers.get(b"content-encoding", b"identity") != b"identity":
        return NOWHERE
    try:
        told = _header_length(head.headers)
    except BadRequest:
        return NOWHERE
    header_bytes = head.size if told is None else told
    return Route(match[1], match[2], header_bytes) if header_bytes <= min(head.size, MAX_FORM_BYTES) else NOWHERE


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    value = headers.get(HEADER_LENGTH.lower().encode())
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise BadRequest(f"{HEADER_LENGTH}: must be a number of bytes")
    return int(value)


def refused(error: Exception, url: bytes) -> HttpResponse:
    """The answer to a request that raised."""
    if isinstance(error, BadRequest):
        return refuse(400, str(error))
    if isinstance(error, ServeError):
        headers = (("Retry-After", str(error.retry_after_s)),) if error.retry_after_s is not None else ()
        return HttpResponse(error.status, [_encode({"error": str(error), "code": error.code})], headers=headers)
    log.error("a request failed: %r", url[:200], exc_info=error)
    return refuse(500, "internal error; see the gateway's log")
