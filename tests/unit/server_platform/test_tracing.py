"""One trace from the push to the swap, and logs that say what they are about."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from covey_hil.testing.rows import add_campaign
from covey_server import logs
from covey_server.app import open_tracing
from covey_server.db.tables import AssignmentRow, Build, Device, ReportRow, Version
from covey_server.errors import StartError
from covey_server.settings import Settings
from covey_server.tracing.opentelemetry import OpenTelemetryTracing
from covey_server.tracing.spans import OFF, Past, Tracing
from covey_server.tracing.swaps import SwapTracer, _chosen

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

PIPELINE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Tracing:
    return OpenTelemetryTracing("http://127.0.0.1:4318", 1.0, spans)


def finished(tracing: Tracing, spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """All spans so far, by name."""
    tracing.stop()
    return {span.name: span for span in spans.get_finished_spans()}


def _trace(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def _is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return span.parent is not None and of.context is not None and span.parent.span_id == of.context.span_id


def _deploy(site: Site, *, state: str = "active", reason: str = "none") -> str:
    """An order for the version that was pushed, and what its device said of it."""
    with site.services.database.session() as session:
        version = session.query(Version).one()
        build = session.query(Build).one()
        session.add(Device(id="press-1", facts={}, facts_digest="", enrolled_ms=1))
        campaign = add_campaign(session, version.id)
        now = site.clock()
        session.add(
            AssignmentRow(
                id="a1",
                device="press-1",
                counter=1,
                model="digits",
                version_id=version.id,
                build_id=build.id,
                kind="rollout",
                campaign_id=campaign.id,
                issued_ms=now,
                expires_ms=now + 1,
                sent_ms=now + 40,
                state=state,
                reason=reason,
                updated_ms=now + 9000,
            )
        )
        session.flush()
        for seq, (step, at_ms) in enumerate((("fetching", 100), ("warming", 3000), (state, 8000))):
            session.add(
                ReportRow(
                    device="press-1",
                    seq=seq,
                    at_ms=now + at_ms,
                    received_ms=now + at_ms + 5,
                    assignment="a1",
                    model="digits",
                    version="1.0",
                    build="0" * 64,
                    state=step,
                    reason=reason if step == state else "none",
                    detail="",
                )
            )
    return "a1"


def _push_and_build(site: Site, outcome: str = "refused", **headers: str) -> None:
    site.client.headers.update(headers)
    assert site.push().status_code == 201
    site.clock.pass_s(2)
    job = site.lease("onnxruntime-*").json()
    site.clock.pass_s(30)
    report = {"target": job["target"], "outcome": outcome, "reason": "it is worse"}
    answer = site.client.post(
        f"/api/v1/jobs/{job['id']}/finish", json={"lease": job["lease"], "report": report}, headers=site.as_("worker")
    )
    assert answer.is_success, answer.text
    for name in headers:
        del site.client.headers[name]


def test_one_push_is_one_connected_trace(site: Site, tracing: Tracing, spans: InMemorySpanExporter) -> None:
    _push_and_build(site, traceparent=PIPELINE)
    assignment = _deploy(site)
    tracer = SwapTracer(site.services.database, site.services.bus, tracing, 1.0)
    assert tracer.tell([assignment, assignment, "unknown"]) == 1
    assert tracer.tell([assignment]) == 0  # once
    found = finished(tracing, spans)
    push = found["POST /api/v1/models/{model}/versions"]
    build = found["build digits 1.0 onnxruntime-fp32"]
    deploy = found["deploy digits 1.0 on press-1"]
    assert push.parent is not None
    assert f"{push.parent.span_id:016x}" == PIPELINE.split("-")[2]  # the pipeline's own trace goes on here
    assert _is_child(build, push)
    assert _is_child(deploy, build)
    for name in ("send", "fetching", "warming", "active"):
        assert _is_child(found[name], deploy), name
    trace = [push, build, deploy, found["send"], found["fetching"], found["warming"], found["active"]]
    assert {_trace(span) for span in trace} == {PIPELINE.split("-")[1]}
    # Their times are those of what they tell of.
    now = site.clock()
    assert build.end_time is not None
    assert build.start_time is not None
    assert (build.end_time - build.start_time) / 1e9 == 30
    assert (build.attributes or {})["covey.waited_s"] == 2.0
    assert (deploy.start_time, deploy.end_time) == (now * 10**6, (now + 9000) * 10**6)
    assert (found["fetching"].start_time, found["fetching"].end_time) == ((now + 100) * 10**6, (now + 3000) * 10**6)
    assert (deploy.attributes or {})["covey.campaign"] == "digits-1.0"
    assert deploy.status.status_code is StatusCode.UNSET


def test_what_went_wrong_is_told(site: Site, tracing: Tracing, spans: InMemorySpanExporter) -> None:
    _push_and_build(site, "failed")
    SwapTracer(site.services.database, site.services.bus, tracing, 1.0).tell(
        [_deploy(site, state="failed", reason="crash")]
    )
    found = finished(tracing, spans)
    for name, words in (
        ("build digits 1.0 onnxruntime-fp32", "it is worse"),
        ("deploy digits 1.0 on press-1", "failed: crash"),
        ("failed", "crash"),
    ):
        assert (found[name].status.status_code, found[name].status.description) == (StatusCode.ERROR, words)


def test_the_thread_hears_of_orders_and_tells_of_them(
    site: Site, tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    _push_and_build(site)
    assignment = _deploy(site)
    tracer = SwapTracer(site.services.database, site.services.bus, tracing, 1.0)
    tracer.start()
    site.services.bus.publish("device", "press-1")
    site.services.bus.publish("assignment", assignment)
    deadline = time.monotonic() + 20
    while assignment not in tracer._told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tracer.stop()
    assert "deploy digits 1.0 on press-1" in {span.name for span in spans.get_finished_spans()}


def test_of_many_orders_a_share_is_told_and_always_the_same(site: Site, tracing: Tracing) -> None:
    chosen = [number for number in range(10_000) if _chosen(f"{number:032x}", 0.1)]
    assert 850 < len(chosen) < 1150
    assert chosen == [number for number in range(10_000) if _chosen(f"{number:032x}", 0.1)]
    _push_and_build(site)
    assert SwapTracer(site.services.database, site.services.bus, tracing, 0.0).tell([_deploy(site)]) == 0


def test_a_trace_that_is_not_kept_is_not_kept_anywhere(
    site: Site, tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    """Whoever asks may say that their trace is not sampled; then nothing of it is, and nothing is written down."""
    _push_and_build(site, traceparent=PIPELINE[:-2] + "00")
    with site.services.database.reading() as session:
        assert session.query(Version).one().traceparent is None
    assert "POST /api/v1/models/{model}/versions" not in finished(tracing, spans)


@pytest.mark.parametrize("given", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ü" * 300, "00-x-y-01"])
def test_a_bad_traceparent_begins_a_trace_of_its_own(tracing: Tracing, given: str) -> None:
    with tracing.request("GET", given) as span:
        span.answered("/healthz", 200)
        current = tracing.current()
    assert current is not None
    assert len(current) == 55
    assert tracing.current() is None
    assert tracing.past(Past("x", 2, 1), given) is not None
    tracing.stop()


def test_off_is_the_default_and_imports_nothing() -> None:
    assert open_tracing(Settings()) is OFF
    code = "import sys, covey_server.serving; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_who_wants_traces_without_the_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "covey_server.tracing.opentelemetry", None)
    with pytest.raises(StartError, match=r"covey-server\[otel\]"):
        open_tracing(Settings(otel_endpoint="http://127.0.0.1:4318"))
    with pytest.raises(StartError, match="setting otel_endpoint"):
        Settings(otel_endpoint="collector:4318")


# --- logs -----------------------------------------------------------------------------------------------------------------


def _line(**parts: Any) -> dict[str, Any]:
    record = logging.LogRecord("covey_server.x", logging.INFO, "", 0, "done: %s", ("a\nb",), None)
    return dict(json.loads(logs.JsonFormatter(**parts).format(record)))


def test_a_line_says_what_it_is_about() -> None:
    with logs.about(campaign="digits-1.0"), logs.about(device="press-1"):
        line = _line(current=lambda: PIPELINE)
    assert {"message": "done: a\nb", "campaign": "digits-1.0", "device": "press-1"}.items() <= line.items()
    assert (line["trace"], line["span"]) == (PIPELINE.split("-")[1], PIPELINE.split("-")[2])
    assert not {"campaign", "device", "trace", "request"} & _line().keys()
    with pytest.raises(ValueError, match="no field"), logs.about(colour="red"):
        pass


def test_the_fields_are_those_of_the_thread_that_logs() -> None:
    seen: list[dict[str, Any]] = []

    def other() -> None:
        seen.append(_line())

    with logs.about(campaign="digits-1.0"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "campaign" not in seen[0]


def test_a_request_and_all_that_it_logs_carry_its_id(site: Site, tracing: Tracing) -> None:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(self.format(record)))

    handler = Keep()
    handler.setFormatter(logs.JsonFormatter(tracing.current))
    logger = logging.getLogger("covey_server.middleware")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        answer = site.client.get("/api/v1/models", headers=site.as_("viewer"))
        deadline = time.monotonic() + 20
        while not lines:  # the line is written after the answer is
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert [line["request"] for line in lines] == [answer.headers["x-request-id"]]
    assert len(lines[0]["trace"]) == 32
