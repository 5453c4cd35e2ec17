"""The way of a build from the queue to a signed manifest, and every way in which it can go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from covey_contract.building import BuildJob
from covey_contract.envelope import decode_envelope
from covey_contract.manifest import MANIFEST_TYPE, DataType, FileEntry, Manifest, Runtime, TensorSpec, build_digest
from covey_contract.signing import verify
from covey_contract.wire import decode, encode

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

MODEL = b"optimised graph" * 10_000
IMAGE = TensorSpec(name="image", datatype=DataType.FP32, shape=(1, 1, 32, 32))


def _entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _table(data: bytes) -> bytes:
    blocks = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    return b"".join(hashlib.sha256(block).digest() for block in blocks)


def _manifest(**changes: Any) -> Manifest:
    good: dict[str, Any] = {
        "model": "digits",
        "version": "1.0",
        "target": "onnxruntime-fp32",
        "runtime": Runtime.ONNXRUNTIME,
        "precision": "fp32",
        "entry": "model.onnx",
        "files": (_entry("model.onnx", MODEL),),
        "table": _entry("blocks.bin", _table(MODEL)),
        "inputs": (IMAGE,),
        "outputs": (IMAGE,),
    }
    return Manifest(**(good | changes))


def _leased(site: Site) -> BuildJob:
    site.push()
    answer = site.lease()
    assert answer.status_code == 200
    return decode(BuildJob, answer.content)


def _deliver(site: Site, job: BuildJob, data: bytes, name: str | None = None, lease: str | None = None) -> Any:
    digest = name or hashlib.sha256(data).hexdigest()
    url = f"/api/v1/jobs/{job.id}/files/{digest}?lease={lease or job.lease}"
    return site.client.put(url, content=data, headers=site.as_("worker"))


def _finish(site: Site, job: BuildJob, payload: bytes | None, outcome: str = "built", **changes: Any) -> Any:
    report = {"target": job.target, "outcome": outcome, "reason": changes.pop("reason", "")} | changes.pop("report", {})
    manifest = base64.b64encode(payload).decode() if payload is not None else None
    body = {"lease": job.lease, "report": report, "manifest": manifest} | changes
    return site.client.post(f"/api/v1/jobs/{job.id}/finish", json=body, headers=site.as_("worker"))


def _build(site: Site, build_id: int) -> Any:
    return site.client.get(f"/api/v1/builds/{build_id}", headers=site.as_("viewer")).json()


@pytest.mark.parametrize(("metadata", "rows"), [({}, 1), ({"max_batch": "8"}, 8)])
def test_a_job_says_how_many_rows_a_build_should_take(site: Site, metadata: dict[str, str], rows: int) -> None:
    site.push(metadata=json.dumps(metadata))
    assert decode(BuildJob, site.lease().content).max_batch == rows


def test_from_lease_to_signature(site: Site) -> None:
    job = _leased(site)
    assert (job.model, job.version, job.target, job.budget) == ("digits", "1.0", "onnxruntime-fp32", 0.01)
    blob = site.client.get(f"/api/v1/blobs/{job.source.sha256}", headers=site.as_("worker"))
    assert blob.content == b"the graph"
    assert _deliver(site, job, MODEL).json()["size"] == len(MODEL)
    assert _deliver(site, job, _table(MODEL)).status_code == 200
    payload = encode(_manifest())
    answer = _finish(
        site,
        job,
        payload,
        report={"accuracy": {"metric": "top1", "source": 1, "build": 1, "samples": 9, "budget": 0.01}},
    )
    assert answer.json() == {"id": job.id, "state": "built", "digest": build_digest(payload)}
    build = _build(site, job.id)
    assert (build["state"], build["size"]) == ("built", len(MODEL))
    assert build["accuracy"]["samples"] == 9
    assert base64.b64decode(build["manifest"]) == payload
    envelope = decode_envelope(base64.b64decode(build["envelope"]))
    assert verify(envelope, MANIFEST_TYPE, site.services.keys.trust.release) == payload
    # The worker may not have heard the answer.
    assert _finish(site, job, payload).json() == answer.json()
    assert site.lease().status_code == 204


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("refused", "top1 drops by 0.031, over the budget of 0.010"), ("unsupported", "no int8"), ("failed", "killed")],
)
def test_what_did_not_succeed_says_why_and_may_be_tried_again(site: Site, outcome: str, reason: str) -> None:
    job = _leased(site)
    assert _finish(site, job, None, outcome, reason=reason).json()["state"] == outcome
    assert _build(site, job.id)["reason"] == reason
    again = site.client.post(f"/api/v1/builds/{job.id}/retry", headers=site.as_("operator"))
    assert (again.json()["state"], again.json()["reason"]) == ("queued", "")
    assert site.lease().status_code == 200


def test_only_what_did_not_succeed_may_be_tried_again(site: Site) -> None:
    job = _leased(site)
    answer = site.client.post(f"/api/v1/builds/{job.id}/retry", headers=site.as_("operator"))
    assert answer.status_code == 409


LIES: list[tuple[str, dict[str, Any], str]] = [
    ("other model", {"model": "faces"}, "model"),
    ("other version", {"version": "2"}, "version"),
    ("other target", {"target": "openvino-int8"}, "target"),
    ("other runtime", {"runtime": Runtime.OPENVINO}, "runtime"),
    ("other precision", {"precision": "int8"}, "precision"),
    ("a file that was not delivered", {"files": (_entry("model.onnx", b"y" * len(MODEL)),)}, "not delivered"),
    ("a table that was not delivered", {"table": _entry("blocks.bin", b"x" * 96)}, "not delivered"),
    (
        "a size that is not the file's",
        {"files": (FileEntry(path="model.onnx", size=len(MODEL) - 1, sha256=hashlib.sha256(MODEL).hexdigest()),)},
        "bytes, not",
    ),
]


@pytest.mark.parametrize(("changes", "words"), [pytest.param(*one[1:], id=one[0]) for one in LIES])
def test_a_manifest_that_does_not_hold_is_never_signed(site: Site, changes: dict[str, Any], words: str) -> None:
    job = _leased(site)
    for data in (MODEL, _table(MODEL)):
        _deliver(site, job, data)
    answer = _finish(site, job, encode(_manifest(**changes)))
    assert (answer.status_code, answer.json()["field"]) == (422, "manifest")
    assert words in answer.json()["detail"]
    build = _build(site, job.id)
    assert (build["state"], build["envelope"]) == ("building", None)


def test_a_block_table_of_other_blocks_is_never_signed(site: Site) -> None:
    job = _leased(site)
    wrong = _table(b"z" * len(MODEL))
    for data in (MODEL, wrong):
        _deliver(site, job, data)
    answer = _finish(site, job, encode(_manifest(table=_entry("blocks.bin", wrong))))
    assert (answer.status_code, answer.json()["detail"]) == (422, "the block table does not fit model.onnx")


BAD_FINISHES: list[tuple[str, dict[str, Any], str]] = [
    ("no manifest", {"payload": None}, "manifest"),
    ("a manifest of what was refused", {"outcome": "refused", "payload": b"{}"}, "manifest"),
    ("garbage", {"payload": b"\x00garbage"}, "manifest"),
    ("no base64", {"payload": None, "manifest": "*"}, "manifest"),
    ("report of another target", {"payload": None, "outcome": "failed", "report": {"target": "tflite-int8"}}, "report"),
    ("unknown outcome", {"payload": None, "outcome": "perfect"}, "report"),
    ("report of another version", {"payload": None, "outcome": "failed", "report": {"v": 9}}, "report"),
]


@pytest.mark.parametrize(("changes", "field"), [pytest.param(*one[1:], id=one[0]) for one in BAD_FINISHES])
def test_a_bad_finish_is_a_problem(site: Site, changes: dict[str, Any], field: str) -> None:
    answer = _finish(site, _leased(site), **changes)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


def test_only_the_lease_may_speak(site: Site) -> None:
    job = _leased(site)
    stale = msgspec.structs.replace(job, lease="0" * 32)
    renew = {"lease": stale.lease, "seconds": 60}
    answers = [
        _deliver(site, stale, MODEL),
        _finish(site, stale, None, "failed"),
        site.client.post(f"/api/v1/jobs/{job.id}/renew", json=renew, headers=site.as_("worker")),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (409, "stale_lease")
    unknown = msgspec.structs.replace(job, id=99)
    assert _finish(site, unknown, None, "failed").status_code == 404
    assert _finish(site, job, None, "failed").status_code == 200


def test_a_file_is_what_it_was_announced_as(site: Site) -> None:
    job = _leased(site)
    answer = _deliver(site, job, MODEL, name="0" * 64)
    assert (answer.status_code, answer.json()["field"]) == (422, "sha256")
    assert _deliver(site, job, MODEL, name="no-digest").status_code == 404
    assert not site.services.blobs.has("0" * 64)


def test_a_lease_that_is_renewed_lives_on_and_one_that_is_not_is_given_to_the_next(
    site: Site,
) -> None:
    job = _leased(site)
    site.clock.pass_s(50)
    body = {"lease": job.lease, "seconds": 60}
    renewed = site.client.post(f"/api/v1/jobs/{job.id}/renew", json=body, headers=site.as_("worker"))
    assert renewed.json() == {"lease_expires_ms": site.clock() + 60_000}
    site.clock.pass_s(50)
    assert site.lease().status_code == 204
    site.clock.pass_s(11)
    second = decode(BuildJob, site.lease(worker="other").content)
    assert (second.id, second.lease != job.lease) == (job.id, True)
    assert _finish(site, job, None, "failed").status_code == 409
    assert _finish(site, second, None, "failed").status_code == 200


def test_a_job_whose_workers_vanish_fails_after_three(site: Site) -> None:
    site.push()
    for _ in range(3):
        assert site.lease().status_code == 200
        site.clock.pass_s(61)
    assert site.lease().status_code == 204
    build = _build(site, 1)
    assert (build["state"], build["attempts"]) == ("failed", 3)
    assert build["reason"] == "its worker vanished 3 times while building it"


def test_workers_get_what_they_can_build_and_end_the_waiting(site: Site) -> None:
    site.push(targets=["tensorrt-fp16-sm87", "tensorrt-int8-sm87", "onnxruntime-fp32"])
    assert decode(BuildJob, site.lease("onnx*").content).target == "onnxruntime-fp32"
    assert site.lease("openvino-*", "tensorrt-fp16-sm8_").status_code == 204
    assert _build(site, 1)["waiting_for"] != ""
    assert decode(BuildJob, site.lease("tensorrt-*-sm87", "tensorrt-*").content).target == "tensorrt-fp16-sm87"
    assert _build(site, 2)["waiting_for"] == ""
    site.push(version="2", targets=["tensorrt-fp32-sm87"])
    assert _build(site, 4)["waiting_for"] == ""


def test_racing_workers_never_share_a_job(site: Site) -> None:
    for number in range(12):
        site.push(version=str(number))
    taken: list[int] = []

    def work() -> None:
        while (answer := site.lease()).status_code == 200:
            taken.append(decode(BuildJob, answer.content).id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 13))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "worker"),
        ({"worker": "w", "targets": ["*"], "seconds": 1}, "seconds"),
        ({"worker": "w", "targets": "*"}, "targets"),
    ],
)
def test_a_bad_lease_request_names_the_field(site: Site, body: dict[str, Any], field: str) -> None:
    answer = site.client.post("/api/v1/jobs/lease", json=body, headers=site.as_("worker"))
    assert (answer.status_code, answer.json()["field"]) == (422, field)
