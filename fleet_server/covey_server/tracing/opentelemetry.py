"""Spans by OpenTelemetry, sent by OTLP over HTTP. The one module that imports it; the extra `otel` installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from covey_server import __version__
from covey_server.tracing.spans import Past, RequestSpan

_MS = 1_000_000  # nanoseconds
_FLUSH_MS = 3000
_W3C = TraceContextTextMapPropagator()


class OpenTelemetryTracing:
    """`exporter`: where spans go in the end; by default to the collector at `endpoint` (http://HOST:4318)."""

    on = True

    def __init__(self, endpoint: str, ratio: float, exporter: SpanExporter | None = None) -> None:
        resource = Resource.create({"service.name": "covey-server", "service.version": __version__})
        # Ours alone: the process-wide provider is left to whoever embeds us.
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)))
        to = exporter or OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(to))
        self._tracer = self._provider.get_tracer("covey_server", __version__)

    def request(self, method: str, traceparent: str) -> AbstractContextManager[RequestSpan]:
        return self._request(method, traceparent)

    @contextmanager
    def _request(self, method: str, traceparent: str) -> Iterator[RequestSpan]:
        span = self._tracer.start_span(method, context=_parent(traceparent), kind=SpanKind.SERVER)
        span.set_attribute("http.request.method", method)
        with trace.use_span(span, end_on_exit=True):
            yield _Answering(span, method)

    def current(self) -> str | None:
        return _traceparent(trace.get_current_span())

    def past(self, span: Past, parent: str | None) -> str | None:
        made = self._tracer.start_span(
            span.name, context=_parent(parent or ""), attributes=dict(span.attributes), start_time=span.start_ms * _MS
        )
        if span.problem:
            made.set_status(Status(StatusCode.ERROR, span.problem))
        # Clocks of devices are not the server's; a span never ends before it began.
        made.end(max(span.start_ms, span.end_ms) * _MS)
        return _traceparent(made)

    def stop(self) -> None:
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class _Answering:
    def __init__(self, span: Span, method: str) -> None:
        self._span, self._method = span, method

    def answered(self, route: str, status: int) -> None:
        self._span.update_name(f"{self._method} {route}" if route else self._method)
        self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


def _parent(traceparent: str) -> Context:
    """The context of a `traceparent`; an empty one if it is none."""
    return _W3C.extract({"traceparent": traceparent}, Context())


def _traceparent(span: Span) -> str | None:
    found = span.get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    return f"00-{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}-01"
