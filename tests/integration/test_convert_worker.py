"""The build worker as a real process against a real HTTP server that speaks the job endpoints, and has its bad moments."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from covey_contract.building import BuildJob, BuildReport, Outcome, SourceFile
from covey_contract.manifest import Manifest
from covey_contract.wire import decode, encode
from covey_hil.digits import data
from covey_hil.testing.waiting import until

COMMAND = str(Path(sys.executable).with_name("covey-convert"))
TOKEN = "worker-token-of-the-test"


class JobServer:
    """The job endpoints of the API over one queue; `trouble` answers so many requests with 503 first."""

    def __init__(self) -> None:
        self.jobs: list[BuildJob] = []
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.finished: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.trouble = 0
        self.lost = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(server.get(self.path))

            def do_POST(self) -> None:
                self._answer(server.post(self.path, self._body(), self.headers["Authorization"] or ""))

            def do_PUT(self) -> None:
                self._answer(server.put(self.path, self._body()))

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers["Content-Length"]))

            def _answer(self, answer: tuple[int, bytes]) -> None:
                status, body = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                server.requests.append(format % args)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add(self, job_id: int, target: str, source: Path, evaluation: Path, *, max_batch: int = 1) -> None:
        self.jobs.append(
            BuildJob(
                id=job_id,
                lease=f"lease-{job_id}",
                lease_expires_ms=int(time.time() * 1000) + 30_000,
                model="digits",
                version="1.0",
                target=target,
                source=self._blob(source),
                evaluation=self._blob(evaluation),
                max_batch=max_batch,
            )
        )

    def _blob(self, path: Path) -> SourceFile:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return SourceFile(filename=path.name, size=len(content), sha256=digest)

    def get(self, path: str) -> tuple[int, bytes]:
        if self._troubled():
            return 503, b'{"title":"Restarting","detail":"the server is restarting"}'
        return 200, self.blobs[path.rpartition("/")[2]]

    def post(self, path: str, body: bytes, authorization: str) -> tuple[int, bytes]:
        if authorization != f"Bearer {TOKEN}":
            return 401, b'{"title":"Unauthorized","detail":"no such token"}'
        if self._troubled():
            return 503, b""
        if path.endswith("/lease"):
            return (200, encode(self.jobs.pop(0))) if self.jobs else (204, b"")
        if path.endswith("/finish"):
            if self.lost:
                return 409, b'{"title":"Conflict","detail":"the lease has expired"}'
            self.finished.append(json.loads(body))
        return 200, b"{}"

    def put(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._troubled():
            return 503, b""
        digest = path.partition("?")[0].rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        assert "lease=lease-" in path
        self.files[digest] = body
        return 200, b"{}"

    def _troubled(self) -> bool:
        self.trouble -= 1
        return self.trouble >= 0


@pytest.fixture
def server() -> Iterator[JobServer]:
    running = JobServer()
    yield running
    running.close()


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    _, path, _ = data.write_samples(tmp_path)
    return path


StartWorker = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(server: JobServer) -> Iterator[StartWorker]:
    started: list[subprocess.Popen[str]] = []

    def start_worker(*words: str, token: str = TOKEN) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [COMMAND, "worker", "--server", server.url, "--targets", "onnxruntime-*", *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COVEY_TOKEN": token},
        )
        started.append(process)
        return process

    yield start_worker
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_jobs_are_built_and_delivered_although_the_server_restarts(
    server: JobServer, start: StartWorker, evaluation: Path
) -> None:
    server.trouble = 2
    server.add(1, "onnxruntime-fp32", data.model_path("1.0"), evaluation)
    server.add(2, "onnxruntime-int8", data.model_path("1.0"), evaluation, max_batch=4)
    worker = start()
    until(lambda: len(server.finished) == 1, "the first job to be done")
    server.trouble = 1
    until(lambda: len(server.finished) == 2, "the second job to be done")
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=10)
    assert worker.returncode == 0, said
    for target, finished in zip(("onnxruntime-fp32", "onnxruntime-int8"), server.finished, strict=True):
        report = msgspec.convert(finished["report"], BuildReport)
        assert (report.target, report.outcome) == (target, Outcome.BUILT), report.reason
        manifest = decode(Manifest, base64.b64decode(finished["manifest"]))
        assert (manifest.model, manifest.version, manifest.target) == ("digits", "1.0", target)
        # Without calibration data that is INT8 weights, or ranges found while running, which all rows would share.
        assert manifest.max_batch == (4 if report.recipe == "INT8 weights, computed in FP32" else 1), report.notes
        for file in manifest.wire_files():
            assert len(server.files[file.sha256]) == file.size
    # The source was downloaded once for both.
    gets = [line for line in server.requests if "GET" in line and "200" in line]
    assert len(gets) == 2


def test_a_bad_source_is_a_report_and_not_the_worker_s_end(
    server: JobServer, start: StartWorker, evaluation: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(data.model_path("1.0").read_bytes()[:1000])
    server.add(7, "onnxruntime-fp32", broken, evaluation)
    worker = start("--once")
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    [finished] = server.finished
    assert finished["manifest"] is None
    assert finished["report"]["outcome"] == "unsupported"
    assert "broken.onnx: not an ONNX model, or cut short" in finished["report"]["reason"]


def test_a_damaged_download_is_refused(server: JobServer, start: StartWorker, evaluation: Path) -> None:
    server.add(3, "onnxruntime-fp32", data.model_path("1.0"), evaluation)
    digest = server.jobs[0].source.sha256
    server.blobs[digest] = server.blobs[digest][:-1] + b"?"
    worker = start("--once")
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert server.finished == []
    assert "given up" in said
    assert "Traceback" not in said


def test_a_lost_lease_is_no_disaster(server: JobServer, start: StartWorker, evaluation: Path) -> None:
    server.lost = True
    server.add(4, "onnxruntime-fp32", data.model_path("1.0"), evaluation)
    worker = start("--once")
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "the lease has expired" in said
    assert server.finished == []


def test_a_wrong_token_is_one_line(start: StartWorker) -> None:
    worker = start(token="guessed")
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 2
    assert said.splitlines()[-1] == "covey-convert: the server refuses: no such token"


def test_a_stopped_worker_ends_its_build_and_does_not_finish_the_job(
    server: JobServer, start: StartWorker, evaluation: Path
) -> None:
    server.add(5, "onnxruntime-fp32", data.model_path("1.2"), evaluation)
    worker = start()
    until(lambda: any("GET" in line for line in server.requests), "the worker to ask")
    worker.send_signal(signal.SIGTERM)
    began = time.monotonic()
    worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert time.monotonic() - began < 10
    assert server.finished == []
