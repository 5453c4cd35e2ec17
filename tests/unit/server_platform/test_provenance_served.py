"""A build's statement of provenance: delivered beside the files, pinned by the signed manifest, served as it came."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from covey_contract.building import BuildJob
from covey_contract.manifest import FileEntry
from covey_contract.wire import decode, encode
from covey_hil.testing.manifests import made_manifest

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site

MODEL = b"a graph"
TABLE = hashlib.sha256(MODEL).digest()
SOURCE = b"the graph"  # as `Site.push` uploads it


def material(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}


def statement(**changes: Any) -> bytes:
    told = {"model": "digits", "version": "1.0", "target": "onnxruntime-fp32"}
    whole = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model.onnx", "digest": {"sha256": hashlib.sha256(MODEL).hexdigest()}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "externalParameters": {**told, **changes.pop("told", {})},
                "resolvedDependencies": changes.pop("materials", [material("source", SOURCE)]),
            }
        },
    }
    return json.dumps({**whole, **changes}).encode() + b"\n"


STATEMENT = statement()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest(provenance: str | None) -> bytes:
    return encode(
        made_manifest(
            model="digits",
            version="1.0",
            files=(FileEntry(path="model.onnx", size=len(MODEL), sha256=_sha256(MODEL)),),
            table=FileEntry(path="blocks.bin", size=len(TABLE), sha256=_sha256(TABLE)),
            inputs=(),
            outputs=(),
            provenance_sha256=provenance,
        )
    )


def _finish(site: Site, provenance: str | None, *delivered: bytes) -> tuple[BuildJob, Any]:
    site.push()
    job = decode(BuildJob, site.lease().content)
    for data in (MODEL, TABLE, *delivered):
        url = f"/api/v1/jobs/{job.id}/files/{_sha256(data)}?lease={job.lease}"
        assert site.client.put(url, content=data, headers=site.as_("worker")).status_code == 200
    body = {
        "lease": job.lease,
        "report": {"target": job.target, "outcome": "built"},
        "manifest": base64.b64encode(_manifest(provenance)).decode(),
    }
    return job, site.client.post(f"/api/v1/jobs/{job.id}/finish", json=body, headers=site.as_("worker"))


def _provenance(site: Site, build: int) -> Any:
    return site.client.get(f"/api/v1/builds/{build}/provenance", headers=site.as_("viewer"))


def test_a_statement_is_served_as_it_came(site: Site) -> None:
    job, answer = _finish(site, _sha256(STATEMENT), STATEMENT)
    assert answer.status_code == 200
    served = _provenance(site, job.id)
    assert served.content == STATEMENT
    assert served.headers["content-type"] == "application/vnd.in-toto+json"


def test_a_statement_that_was_not_delivered(site: Site) -> None:
    _, answer = _finish(site, _sha256(STATEMENT))
    assert answer.status_code == 422
    assert "the statement of provenance was not delivered" in answer.json()["detail"]


def test_a_statement_that_is_too_large(site: Site) -> None:
    large = b" " * 300_000
    _, answer = _finish(site, _sha256(large), large)
    assert answer.status_code == 422
    assert "300000 bytes; at most" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"{}", "is none"),
        (b"[" * 3000, "is none"),
        (statement(_type="https://in-toto.io/Statement/v0.1"), "is none"),
        (statement(predicateType="https://example.org/mine"), "is none"),
        (statement(subject=[]), "not about this model.onnx"),
        (statement(subject=[{"name": "model.onnx", "digest": {"sha256": "0" * 64}}]), "not about this model.onnx"),
        (statement(told={"model": "letters"}), "another model"),
        (statement(told={"version": "0.9"}), "another version"),
        (statement(told={"target": "tflite-int8"}), "another target"),
        (statement(materials=[]), "another source than was uploaded"),
        (statement(materials=[material("source", b"somebody else's graph")]), "another source than was uploaded"),
        (
            statement(materials=[material("source", SOURCE), material("calibration", b"poisoned")]),
            "another calibration than was uploaded",
        ),
    ],
)
def test_a_statement_about_something_else_is_not_signed(site: Site, data: bytes, word: str) -> None:
    job, answer = _finish(site, _sha256(data), data)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]
    assert _provenance(site, job.id).status_code == 404


def test_a_build_without_a_statement(site: Site) -> None:
    job, answer = _finish(site, None)
    assert answer.status_code == 200
    assert _provenance(site, job.id).status_code == 404
    assert "without a statement" in _provenance(site, job.id).json()["detail"]


def test_what_is_not_built_has_no_provenance(site: Site) -> None:
    site.push()
    job = decode(BuildJob, site.lease().content)
    assert _provenance(site, job.id).status_code == 404
    assert _provenance(site, 999).status_code == 404


def test_the_metric_of_a_version_goes_with_its_jobs(site: Site) -> None:
    evaluation = io.BytesIO()
    np.savez(evaluation, image=np.zeros((2, 4), np.float32))
    files = {"source": ("digits.onnx", b"the graph"), "evaluation": ("evaluation.npz", evaluation.getvalue())}
    pushed = site.push(metadata=json.dumps({"metric": "detection:axis=1"}), files=files)
    assert pushed.status_code == 201, pushed.text
    assert decode(BuildJob, site.lease().content).metric == "detection:axis=1"
