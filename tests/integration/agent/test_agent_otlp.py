"""An agent's figures at a collector: a real HTTP receiver that decodes the protobuf, and an exporter that is a process of its own."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, ResourceMetrics

from covey_agent.errors import AlreadyRunningError, UsageError
from covey_agent.otlp.collector import Away, Refused, collector_of
from covey_agent.otlp.messages import export_request
from covey_agent.otlp.process import Pusher
from covey_agent.otlp.series import MAX_BUILDS, Series
from covey_agent.tap import Tap, listening, received
from covey_contract.histogram import Histogram, Recorder
from covey_contract.lifecycle import State
from covey_contract.messages import BuildWindow, Resources, Telemetry
from covey_contract.wire import decode
from covey_hil.testing.agent_site import Device, Site
from covey_hil.testing.made_builds import MadeBuild

Make = Callable[..., MadeBuild]
Wait = Callable[..., Any]


class Receiver:
    """A collector: keeps what is pushed. `status` other than 200: it says that instead."""

    def __init__(self) -> None:
        self.got: list[ExportMetricsServiceRequest] = []
        self.headers: dict[str, str] = {}
        self.status, self.retry_after, self.rejected = 200, "", 0
        self.port = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        """At the same port again, after a `stop`."""
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802  # as http.server calls it
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.headers = {name.lower(): value for name, value in self.headers.items()}
                if receiver.status == 200 and self.path == "/v1/metrics":
                    receiver.got.append(ExportMetricsServiceRequest.FromString(gzip.decompress(body)))
                self.send_response(receiver.status)
                if receiver.retry_after:
                    self.send_header("Retry-After", receiver.retry_after)
                answer = ExportMetricsServiceResponse()
                answer.partial_success.rejected_data_points = receiver.rejected
                content = answer.SerializeToString()
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    made.start()
    yield made
    made.stop()


@contextlib.contextmanager
def exporting(device: Device, url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    words = ["otlp", "--state", str(device.state), "--endpoint", url, "--interval", "1", *options]
    process = subprocess.Popen([sys.executable, "-m", "covey_agent", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "figures of" in process.stderr.readline()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said, said


def resources(request: ExportMetricsServiceRequest) -> list[tuple[dict[str, Any], dict[str, Metric]]]:
    return [
        (attributes(one), {metric.name: metric for metric in one.scope_metrics[0].metrics})
        for one in request.resource_metrics
    ]


def attributes(one: ResourceMetrics) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in one.resource.attributes}


def of_build(request: ExportMetricsServiceRequest, build: str) -> dict[str, Metric]:
    return next((metrics for about, metrics in resources(request) if about.get("covey.build") == build), {})


def counts(metric: Metric, key: str) -> dict[Any, int]:
    return {
        point.attributes[0].value.string_value or point.attributes[0].value.int_value: point.as_int
        for point in metric.sum.data_points
        if point.attributes[0].key == key
    }


def answered(request: ExportMetricsServiceRequest, build: str) -> int:
    metrics = of_build(request, build)
    return counts(metrics["covey.inference.requests"], "outcome").get("ok", 0) if metrics else 0


def test_an_agents_figures_reach_a_collector_that_comes_and_goes(
    site: Site, make: Make, wait_for: Wait, receiver: Receiver
) -> None:
    server, device = site.server, site.device
    build = make("1.0", 2.0)
    device.start("--telemetry-interval", "0.5")
    wait_for(lambda: server.hellos, "the hello")
    with exporting(device, receiver.url, "--header", "Authorization=Bearer t1"):
        server.reached(server.order(build), State.ACTIVE)
        for _ in range(5):
            device.infer(1.0)
        told = wait_for(lambda: [one for one in receiver.got if answered(one, build.digest) >= 5], "five requests")[-1]
        assert receiver.headers["authorization"] == "Bearer t1"
        assert receiver.headers["content-type"] == "application/x-protobuf"
        about = next(about for about, _ in resources(told) if about.get("covey.build") == build.digest)
        assert about["covey.device"] == about["service.instance.id"] != ""
        assert (about["covey.version"], about["covey.target"]) == ("1.0", build.manifest.target)
        histogram = of_build(told, build.digest)["covey.inference.duration"].exponential_histogram
        assert histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        [point] = histogram.data_points
        assert point.count == point.zero_count + sum(point.positive.bucket_counts) >= 5
        assert 0 < point.min <= point.max <= point.sum
        assert point.start_time_unix_nano < point.time_unix_nano
        [(_, own)] = [one for one in resources(told) if "covey.build" not in one[0]]
        memory = {
            point.attributes[0].value.string_value: point.as_double
            for point in own["covey.agent.memory.usage"].gauge.data_points
        }
        assert memory["control"] > 1e6
        assert memory["gateway"] > 1e6

        receiver.stop()
        for _ in range(3):
            device.infer(1.0)
        wait_for(lambda: any(window.ok for record in server.telemetry[-3:] for window in record.windows), "a window")
        receiver.start()
        wait_for(lambda: answered(receiver.got[-1], build.digest) >= 8, "what happened meanwhile")
        # The agent may be started anew beside it.
        device.kill()
        device.start("--telemetry-interval", "0.5")
        wait_for(lambda: device.serving == build.digest, "the model")
        device.infer(1.0)
        wait_for(lambda: answered(receiver.got[-1], build.digest) >= 9, "what the new agent tells")
    assert device.stop() == 0


def window(build: str, seconds: tuple[float, ...] = (), **more: Any) -> BuildWindow:
    recorder = Recorder()
    for one in seconds:
        recorder.record(one)
    return BuildWindow(
        model="digits", version="1.0", build=build, ok=len(seconds), end_to_end=recorder.snapshot(), **more
    )


def telemetry(*windows: BuildWindow, start_ms: int = 1000, resources: Resources | None = None) -> Telemetry:
    return Telemetry(
        seq=0, boot_id="b", start_ms=start_ms, end_ms=start_ms + 1000, windows=windows, resources=resources
    )


ONE = "a" * 64


def test_windows_add_up_and_every_bucket_is_told() -> None:
    series = Series()
    series.add(telemetry(window(ONE, (0.0, 0.001, 0.002), errors={"late": 2}, batches={1: 3})))
    series.add(
        telemetry(window(ONE, (0.1,), errors={"late": 1, "queue_full": 1}, fallbacks=1, batches={4: 1}), start_ms=5000)
    )
    metrics = of_build(export_request(series, {}, lambda _: ""), ONE)
    assert counts(metrics["covey.inference.requests"], "outcome") == {"ok": 4, "late": 3, "queue_full": 1}
    assert counts(metrics["covey.inference.batches"], "rows") == {1: 3, 4: 1}
    assert [point.as_int for point in metrics["covey.inference.fallbacks"].sum.data_points] == [1]
    [point] = metrics["covey.inference.duration"].exponential_histogram.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (1_000_000_000, 6_000_000_000)
    assert (point.count, point.zero_count, point.min, point.max) == (4, 1, 0.0, 0.1)
    # The same buckets, read back as ours.
    again = Histogram(
        scale=point.scale,
        count=point.count,
        sum=point.sum,
        min=point.min,
        max=point.max,
        zero_count=point.zero_count,
        offset=point.positive.offset,
        counts=tuple(point.positive.bucket_counts),
    )
    assert again == series.builds()[0].end_to_end
    assert again.quantile(1.0) == 0.1


def test_what_a_device_cannot_read_is_not_told() -> None:
    series = Series()
    series.add(telemetry(resources=Resources(cpu_percent=50.0, control_rss_mb=40.0)))
    [(_, cold)] = resources(export_request(series, {"covey.simulated": True}, lambda _: ""))
    assert cold["covey.agent.cpu.utilization"].gauge.data_points[0].as_double == 0.5
    assert "covey.device.temperature" not in cold
    series.add(telemetry(resources=Resources(temperature_c=61.5, throttled=True, accelerators={"gpu": 25.0})))
    [(about, warm)] = resources(export_request(series, {"covey.simulated": True}, lambda _: ""))
    assert about == {"covey.simulated": True}
    assert warm["covey.device.temperature"].gauge.data_points[0].as_double == 61.5
    assert warm["covey.device.throttled"].gauge.data_points[0].as_double == 1.0
    [busy] = warm["covey.device.accelerator.utilization"].gauge.data_points
    assert (busy.attributes[0].value.string_value, busy.as_double) == ("gpu", 0.25)


def test_memory_is_bounded() -> None:
    series = Series()
    for number in range(MAX_BUILDS + 3):
        series.add(telemetry(window(f"{number:064x}", (0.1,)), start_ms=1000 * number))
    assert [int(one.build, 16) for one in series.builds()] == list(range(3, MAX_BUILDS + 3))
    for number in range(100):
        series.add(telemetry(window(ONE, errors={f"e{number}": 1})))
    [found] = [one for one in series.builds() if one.build == ONE]
    assert len(found.outcomes) < 40
    assert sum(found.outcomes.values()) == 100


def test_a_collector_that_says_no(receiver: Receiver) -> None:
    collector = collector_of(receiver.url, [], None)
    request = export_request(Series(), {}, lambda _: "")
    receiver.rejected = 3
    assert collector.push(request).startswith("3 points")
    receiver.status, receiver.retry_after = 503, "7"
    with pytest.raises(Away, match="503") as away:
        collector.push(request)
    assert away.value.wait_s == 7.0
    receiver.retry_after = "\N{SUPERSCRIPT TWO}"  # a digit, and no number
    with pytest.raises(Away) as odd:
        collector.push(request)
    assert odd.value.wait_s == 0.0
    receiver.status = 401
    with pytest.raises(Refused, match="401"):
        collector.push(request)
    receiver.stop()
    with pytest.raises(Away, match="does not answer"):
        collector.push(request)


def test_pauses_grow_while_a_collector_is_away() -> None:
    now, answers = [0.0], [Away("away"), Away("away", 100.0), Away("away"), Refused("no"), None]
    pushed: list[float] = []

    def push() -> str:
        pushed.append(now[0])
        if (error := answers.pop(0)) is not None:
            raise error
        return ""

    pusher = Pusher(push, 10.0, lambda: now[0])
    while answers:
        pusher.look()
        now[0] += 1.0
    assert pushed == [10.0, 30.0, 130.0, 210.0, 510.0]
    assert pusher.due == 520.0


@pytest.mark.parametrize(
    ("endpoint", "headers"),
    [
        ("collector:4318", []),
        ("http://", []),
        ("http://a:b@c", []),
        ("http://c:99999", []),
        ("http://c", ["x"]),
        ("http://c", ["=x"]),
        ("http://c", ["a=b\nc"]),
    ],
)
def test_addresses_and_headers_that_make_no_sense(endpoint: str, headers: list[str]) -> None:
    with pytest.raises(UsageError):
        collector_of(endpoint, headers, None)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [("http://c:4318", "/v1/metrics"), ("http://c/otlp/", "/otlp/v1/metrics"), ("http://c/v1/metrics", "/v1/metrics")],
)
def test_the_path_of_an_endpoint(endpoint: str, path: str) -> None:
    assert collector_of(endpoint, [], None).address.path == path


def test_nobody_need_listen_and_nobody_holds_the_agent_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "telemetry.sock"
    tap = Tap(path)
    tap.tell(telemetry())
    with listening(path) as sock:
        with pytest.raises(AlreadyRunningError), listening(path):
            pass
        for _ in range(2000):  # more than a socket holds
            tap.tell(telemetry(window(ONE, (0.1,))))
        data = received(sock, 5.0)
        assert data is not None
        assert decode(Telemetry, data).windows[0].ok == 1
    assert not path.exists()
    path.touch()
    tap.tell(telemetry())  # something else lies there
