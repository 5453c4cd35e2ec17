"""Which metrics a job may name: who may push a version must not choose which code of the builder is run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from covey_client.api import Client
from covey_contract.building import BuildJob, Outcome, SourceFile
from covey_converters.jobs import Jobs
from covey_converters.spec import Limits
from covey_converters.worker import Worker


def worker(folder: Path, *metrics: str) -> Worker:
    """Its server is nowhere: what these jobs need lies in its cache."""
    stop = threading.Event()
    jobs = Jobs(Client("http://127.0.0.1:9", "none"), stop, lambda _: None)
    return Worker(jobs, "w", ("*",), folder, Limits(seconds=60), stop, lambda _: None, metrics)


def job(folder: Path, metric: str) -> BuildJob:
    source = folder / "blobs" / ("0" * 64) / "m.onnx"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"no model")
    file = SourceFile(filename="m.onnx", size=8, sha256="0" * 64)
    return BuildJob(
        id=1,
        lease="l",
        lease_expires_ms=1,
        model="m",
        version="1",
        target="onnxruntime-fp32",
        source=file,
        metric=metric,
    )


@pytest.mark.parametrize("metric", ["os:system", "subprocess:run", " os:system "])
def test_a_job_s_function_that_the_builder_did_not_name_is_not_run(tmp_path: Path, metric: str) -> None:
    report = worker(tmp_path, "own:metric")._build(job(tmp_path, metric), tmp_path / "out", threading.Event())
    assert report.outcome is Outcome.UNSUPPORTED
    assert "is not one of this builder's" in report.reason
    assert not (tmp_path / "out").exists()


def test_a_function_that_the_builder_named_and_kinds_of_our_own_go_on(tmp_path: Path) -> None:
    named = worker(tmp_path, "own:metric")
    assert named._metric("own:metric") == "own:metric"
    assert named._metric("detection:axis=1") == "detection:axis=1"
    assert named._metric("") == ""


def test_a_metric_that_is_none_is_the_report_s_reason(tmp_path: Path) -> None:
    report = worker(tmp_path)._build(job(tmp_path, "nonsense"), tmp_path / "out", threading.Event())
    assert report.outcome is Outcome.FAILED
    assert "metric 'nonsense' is none of classification" in report.reason
