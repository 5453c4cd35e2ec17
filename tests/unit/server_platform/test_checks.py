"""The check of a graph for TensorRT: when it is queued, what those that wait for a builder say of it, and that it is never released."""

from __future__ import annotations

import base64
import doctest
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from covey_contract.building import BuildJob
from covey_contract.wire import decode
from covey_server.app import local_targets
from covey_server.registry import checks
from covey_server.registry.checks import CHECK_TARGET
from covey_server.settings import LOCAL_TARGETS, Settings

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

ENGINE = "tensorrt-fp16-sm87"
WAITS = f"a builder for {ENGINE} (none has come)"


def _offered(site: Site, targets: list[str]) -> dict[str, Any]:
    """Push while a worker that offers the check is there; the builds by target."""
    assert site.lease(CHECK_TARGET, worker="checker").status_code == 204
    return _by_target(site.push(targets=targets).json())


def _by_target(version: dict[str, Any]) -> dict[str, Any]:
    return {build["target"]: build for build in version["builds"]}


def _version(site: Site) -> dict[str, Any]:
    return _by_target(site.client.get("/api/v1/models/digits/versions/1.0", headers=site.as_("viewer")).json())


def _check(site: Site, outcome: str, reason: str = "", manifest: str | None = None) -> Any:
    job = decode(BuildJob, site.lease(CHECK_TARGET, worker="checker").content)
    report = {
        "target": CHECK_TARGET,
        "outcome": outcome,
        "reason": reason,
        "toolchain": {"tensorrt-rtx": "1.7.1.116"},
    }
    body = {"lease": job.lease, "report": report, "manifest": manifest}
    return site.client.post(f"/api/v1/jobs/{job.id}/finish", json=body, headers=site.as_("worker"))


def test_a_push_that_needs_a_tensorrt_engine_queues_the_check_where_a_worker_offers_it(site: Site) -> None:
    assert set(_by_target(site.push(version="0", targets=[ENGINE]).json())) == {ENGINE}
    assert set(_offered(site, ["onnxruntime-fp32"])) == {"onnxruntime-fp32"}
    more = site.client.post(
        "/api/v1/models/digits/versions/1.0/builds", json={"targets": [ENGINE]}, headers=site.as_("operator")
    )
    assert [build["target"] for build in more.json()["items"]] == [ENGINE, CHECK_TARGET]


@pytest.mark.parametrize(
    ("outcome", "reason", "said"),
    [
        ("checked", "fit for SM 80", "its graph is fit for TensorRT, checked through TensorRT-RTX 1.7.1.116"),
        (
            "unsupported",
            "TensorRT's parser refuses node 'det' (Det)",
            "the check through TensorRT-RTX 1.7.1.116 says: TensorRT's parser refuses node 'det' (Det)",
        ),
        (
            "failed",
            "killed by SIGSEGV",
            "the check of its graph through TensorRT-RTX 1.7.1.116 came to no end: killed by SIGSEGV",
        ),
    ],
)
def test_what_waits_for_a_builder_says_what_the_check_found(site: Site, outcome: str, reason: str, said: str) -> None:
    builds = _offered(site, [ENGINE, "tflite-int8"])
    assert builds[ENGINE]["waiting_for"] == f"{WAITS}; its graph is still to be checked through TensorRT-RTX"
    assert _check(site, outcome, reason).status_code == 200
    builds = _version(site)
    assert builds[ENGINE]["waiting_for"] == f"{WAITS}; {said}"
    assert builds["tflite-int8"]["waiting_for"] == "a builder for tflite-int8 (none has come)"
    found = builds[CHECK_TARGET]
    assert (found["state"], found["reason"], found["waiting_for"]) == (outcome, reason, "")
    # Every view says the same.
    viewer = site.as_("viewer")
    listed = {build["target"]: build for build in site.client.get("/api/v1/builds", headers=viewer).json()["items"]}
    assert listed == builds
    shown = site.client.get(f"/api/v1/builds/{builds[ENGINE]['id']}", headers=viewer).json()
    assert shown["waiting_for"] == builds[ENGINE]["waiting_for"]


def test_what_was_checked_is_never_released(site: Site) -> None:
    _offered(site, [ENGINE])
    assert _check(site, "checked", "fit").json()["digest"] is None
    build = _version(site)[CHECK_TARGET]
    detail = site.client.get(f"/api/v1/builds/{build['id']}", headers=site.as_("viewer")).json()
    assert (detail["digest"], detail["manifest"], detail["envelope"]) == (None, None, None)
    # Checked again with a newer TensorRT-RTX, and by a worker that wants it released.
    assert site.client.post(f"/api/v1/builds/{build['id']}/retry", headers=site.as_("operator")).status_code == 200
    answer = _check(site, "checked", "fit", base64.b64encode(b"{}").decode())
    assert (answer.status_code, answer.json()["field"]) == (422, "manifest")


def test_once_a_builder_has_come_nothing_waits(site: Site) -> None:
    _offered(site, [ENGINE])
    assert _check(site, "checked").status_code == 200
    assert decode(BuildJob, site.lease("tensorrt-fp16-*").content).target == ENGINE
    assert _version(site)[ENGINE]["waiting_for"] == ""


def test_the_local_worker_offers_the_check_where_it_can_and_is_not_told_otherwise(tmp_path: Path) -> None:
    there = importlib.util.find_spec("tensorrt_rtx") is not None
    assert local_targets(Settings(data=tmp_path)) == (*LOCAL_TARGETS, *((CHECK_TARGET,) if there else ()))
    # Who names the targets gets these and no other, even where they are the default's.
    assert local_targets(Settings(data=tmp_path, worker_targets=LOCAL_TARGETS)) == LOCAL_TARGETS


def test_docstring_example() -> None:
    assert doctest.testmod(checks) == doctest.TestResults(failed=0, attempted=1)
