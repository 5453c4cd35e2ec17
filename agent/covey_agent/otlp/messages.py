"""Sums and histograms as OTLP's messages. Pure.

Each build is a resource of its own, and so is the device. Our histograms are OpenTelemetry's exponential ones already, bucket by bucket, so
that nothing is lost on the way; that is why the messages are made here and not by an SDK, which would count anew.
Source: OpenTelemetry protocol, `opentelemetry/proto/metrics/v1/metrics.proto`; metrics data model, "ExponentialHistogram".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
)

from covey_agent import __version__
from covey_agent.otlp.series import BuildSeries, Series
from covey_contract.histogram import Histogram
from covey_contract.messages import Resources

Value = str | bool | int
_SCOPE = "covey"
_MS = 1_000_000  # nanoseconds
_MB = 1_000_000
_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def export_request(
    series: Series, device: Mapping[str, Value], target_of: Callable[[str], str]
) -> ExportMetricsServiceRequest:
    """All there is to say now. `device`: what is said of every resource; `target_of`: of a build, empty if it is not known."""
    request = ExportMetricsServiceRequest()
    for one in series.builds():
        about: dict[str, Value] = {"covey.model": one.model, "covey.version": one.version, "covey.build": one.build}
        if target := target_of(one.build):
            about["covey.target"] = target
        _resource(request, {**device, **about}, _of_build(one))
    if series.resources is not None:
        _resource(request, device, _of_device(series.resources, series.end_ms))
    return request


def _resource(request: ExportMetricsServiceRequest, about: Mapping[str, Value], metrics: Iterable[Metric]) -> None:
    made: ResourceMetrics = request.resource_metrics.add()
    made.resource.attributes.extend(_attributes(about))
    scope = made.scope_metrics.add()
    scope.scope.name, scope.scope.version = _SCOPE, __version__
    scope.metrics.extend(metrics)


# --- a build ----------------------------------------------------------------------------------------------------------


def _of_build(one: BuildSeries) -> Iterable[Metric]:
    for name, words, histogram in (
        ("covey.inference.duration", "From a request's arrival to its answer.", one.end_to_end),
        ("covey.inference.queue.duration", "A request's wait for a runner.", one.queue),
        ("covey.inference.compute.duration", "The runtime's own time for one inference.", one.compute),
    ):
        yield _histogram(name, words, histogram, one)
    yield _counter(
        "covey.inference.requests",
        "{request}",
        "Requests by what their caller got.",
        one,
        "outcome",
        one.outcomes.items(),
    )
    fallbacks = "Requests that this build failed and the one before answered."
    yield _counter("covey.inference.fallbacks", "{request}", fallbacks, one, "", [("", one.fallbacks)])
    if one.batches:
        yield _counter(
            "covey.inference.batches", "{inference}", "Inferences by their rows.", one, "rows", one.batches.items()
        )


def _histogram(name: str, words: str, histogram: Histogram, one: BuildSeries) -> Metric:
    metric = Metric(name=name, unit="s", description=words)
    metric.exponential_histogram.aggregation_temporality = _CUMULATIVE
    point = ExponentialHistogramDataPoint(
        start_time_unix_nano=one.start_ms * _MS,
        time_unix_nano=one.end_ms * _MS,
        count=histogram.count,
        sum=histogram.sum,
        scale=histogram.scale,
        zero_count=histogram.zero_count,
    )
    if histogram.count:
        point.min, point.max = histogram.min, histogram.max
    if histogram.counts:
        point.positive.offset = histogram.offset
        point.positive.bucket_counts.extend(histogram.counts)
    metric.exponential_histogram.data_points.append(point)
    return metric


def _counter(
    name: str, unit: str, words: str, one: BuildSeries, key: str, counts: Iterable[tuple[Value, int]]
) -> Metric:
    """One point for each value of the attribute `key`; none is set where that is empty."""
    metric = Metric(name=name, unit=unit, description=words)
    metric.sum.aggregation_temporality = _CUMULATIVE
    metric.sum.is_monotonic = True
    for value, count in counts:
        point = NumberDataPoint(start_time_unix_nano=one.start_ms * _MS, time_unix_nano=one.end_ms * _MS, as_int=count)
        if key:
            point.attributes.extend(_attributes({key: value}))
        metric.sum.data_points.append(point)
    return metric


# --- the device -------------------------------------------------------------------------------------------------------


def _of_device(used: Resources, now_ms: int) -> Iterable[Metric]:
    """What could not be read there is not said."""
    yield _gauge(
        "covey.agent.cpu.utilization",
        "1",
        "Of one core, all of the agent's processes.",
        now_ms,
        {"": used.cpu_percent / 100},
    )
    memory = {"control": used.control_rss_mb, "gateway": used.gateway_rss_mb, "runners": used.runners_rss_mb}
    resident = {name: float(round(value * _MB)) for name, value in memory.items()}
    yield _gauge(
        "covey.agent.memory.usage", "By", "Resident memory of the agent's processes.", now_ms, resident, "process"
    )
    for name, words, value in (
        ("covey.device.memory.available", "Memory that may still be had.", used.memory_available_mb),
        ("covey.device.storage.free", "Of the disk with the agent's folder.", used.storage_free_mb),
    ):
        yield _gauge(name, "By", words, now_ms, {"": float(round(value * _MB))})
    if used.temperature_c is not None:
        yield _gauge("covey.device.temperature", "Cel", "The warmest thermal zone.", now_ms, {"": used.temperature_c})
    if used.accelerators:
        busy = {name: percent / 100 for name, percent in used.accelerators.items()}
        words = "Share of the time that each worked."
        yield _gauge("covey.device.accelerator.utilization", "1", words, now_ms, busy, "accelerator")
    if used.throttled is not None:
        yield _gauge(
            "covey.device.throttled", "1", "1 while the processor is held back.", now_ms, {"": float(used.throttled)}
        )


def _gauge(name: str, unit: str, words: str, now_ms: int, values: Mapping[str, float], key: str = "") -> Metric:
    metric = Metric(name=name, unit=unit, description=words)
    for value, number in values.items():
        point = NumberDataPoint(time_unix_nano=now_ms * _MS, as_double=number)
        if key:
            point.attributes.extend(_attributes({key: value}))
        metric.gauge.data_points.append(point)
    return metric


def _attributes(told: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in told.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
