"""Pushing, listing and refusing models, through a real socket into a real database."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import Site


def test_a_push_makes_model_version_and_builds(site: Site) -> None:
    with site.services.bus.subscribe() as hints:
        answer = site.push(
            targets=["onnxruntime-fp32", "tensorrt-fp16-sm87"],
            budget="0.02",
            description="handwritten digits",
            metadata=json.dumps({"mean": 0.5, "layout": "NCHW"}),
            files={"source": ("folder/digits.onnx", b"the graph"), "labels": ("l.txt", b"0\n1\n")},
        )
        assert hints.get(1) == ("build", "1")
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["source_filename"], version["budget"]) == ("digits.onnx", 0.02)
    assert version["metadata"] == {"mean": "0.5", "layout": "NCHW"}
    assert version["labels"]["size"] == 4
    waiting = {build["target"]: build["waiting_for"] for build in version["builds"]}
    assert waiting == {
        "onnxruntime-fp32": "",
        "tensorrt-fp16-sm87": "a builder for tensorrt-fp16-sm87 (none has come)",
    }
    viewer = site.as_("viewer")
    assert site.client.get("/api/v1/models/digits/versions/1.0", headers=viewer).json() == version
    model = site.client.get("/api/v1/models/digits", headers=viewer).json()
    assert (model["description"], model["versions"]) == ("handwritten digits", [version])
    (entry,) = site.client.get("/api/v1/audit?limit=1", headers=viewer).json()["items"]
    assert (entry["who"], entry["action"], entry["object"]) == ("a-operator", "version.push", "digits 1.0")


def test_the_same_push_again_changes_nothing(site: Site) -> None:
    first = site.push()
    again = site.push()
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    more = site.push(targets=["onnxruntime-fp32", "openvino-int8"])
    assert [build["target"] for build in more.json()["builds"]] == ["onnxruntime-fp32", "openvino-int8"]


def test_other_content_under_the_same_name_is_a_conflict(site: Site) -> None:
    site.push()
    answer = site.push(budget="0.5", files={"source": ("digits.onnx", b"another graph")})
    assert answer.status_code == 409
    assert answer.json()["code"] == "version_exists"
    assert answer.json()["differs"] == ["source", "budget"]


def test_without_targets_a_push_builds_what_the_fleet_needs(site: Site) -> None:
    """With no device enrolled, these are the defaults."""
    answer = site.push(targets=[])
    assert {build["target"] for build in answer.json()["builds"]} == {
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp16",
        "openvino-int8",
        "tflite-int8",
    }


def test_more_targets_of_a_version(site: Site) -> None:
    site.push()
    url = "/api/v1/models/digits/versions/1.0/builds"
    body = {"targets": ["openvino-int8", "onnxruntime-fp32"]}
    answer = site.client.post(url, json=body, headers=site.as_("operator"))
    assert [one["target"] for one in answer.json()["items"]] == ["onnxruntime-fp32", "openvino-int8"]
    assert site.client.post(url, json=body, headers=site.as_("operator")).json() == answer.json()


def test_lists_go_page_by_page(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.push(model=name)
    found: list[str] = []
    after = ""
    while True:
        page = site.client.get(f"/api/v1/models?limit=2&after={after}", headers=site.as_("viewer")).json()
        found += [one["name"] for one in page["items"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert found == ["a", "b", "c"]
    page = site.client.get("/api/v1/builds?limit=2&model=b", headers=site.as_("viewer")).json()
    assert [one["model"] for one in page["items"]] == ["b"]


GOOD = {"source": ("m.onnx", b"graph")}
_ARRAYS = io.BytesIO()
with zipfile.ZipFile(_ARRAYS, "w") as _archive:
    _archive.writestr("image.npy", b"")
NO_LABELS = GOOD | {"evaluation": ("e.npz", _ARRAYS.getvalue())}
BAD_PUSHES: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("model name", {"model": "Digits!"}, 422, "model"),
    ("version name", {"version": "../1"}, 422, "version"),
    ("no version", {"version": ""}, 422, "version"),
    ("no source", {"files": {"labels": ("l.txt", b"0")}}, 422, "source"),
    ("empty source", {"files": {"source": ("m.onnx", b"")}}, 422, "source"),
    ("pickle", {"files": {"source": ("m.pt", b"\x80\x04code.")}}, 422, "source"),
    ("pickle in disguise", {"files": {"source": ("m.onnx", b"\x80\x02code.")}}, 422, "source"),
    ("pickle by name", {"files": {"source": ("m.joblib", b"code")}}, 422, "source"),
    ("no archive", {"files": {"source": ("m.ONNX.PTH", b"code")}}, 422, "source"),
    ("half an archive", {"files": {"source": ("m.zip", b"PK\x03\x04code")}}, 422, "source"),
    ("unknown format", {"files": {"source": ("m.docx", b"graph")}}, 422, "source"),
    ("budget no number", {"budget": "much"}, 422, "budget"),
    ("budget too high", {"budget": "1.5"}, 422, "budget"),
    ("budget nan", {"budget": "nan"}, 422, "budget"),
    ("metadata no JSON", {"metadata": "{"}, 422, "metadata"),
    ("metadata no object", {"metadata": "[1]"}, 422, "metadata"),
    ("metadata nested", {"metadata": '{"a": {}}'}, 422, "metadata"),
    ("metadata too long", {"metadata": json.dumps({"a": "x" * 5000})}, 422, "metadata"),
    ("metadata too many", {"metadata": json.dumps({str(i): "x" for i in range(65)})}, 422, "metadata"),
    ("unknown metric", {"metadata": '{"metric": "roc"}'}, 422, "metadata"),
    ("batch no number", {"metadata": '{"max_batch": "all"}'}, 422, "metadata"),
    ("batch too large", {"metadata": '{"max_batch": 257}'}, 422, "metadata"),
    ("batch of none", {"metadata": '{"max_batch": 0}'}, 422, "metadata"),
    ("metric without evaluation", {"metadata": '{"metric": "embedding"}'}, 422, "metadata"),
    ("metric without labels", {"metadata": '{"metric": "classification"}', "files": NO_LABELS}, 422, "evaluation"),
    ("evaluation no archive", {"files": GOOD | {"evaluation": ("e.npz", b"numbers")}}, 422, "evaluation"),
    ("description too long", {"description": "x" * 5000}, 422, "description"),
    ("unknown target", {"targets": ["onnx-fp32"]}, 422, "targets"),
    ("too many targets", {"targets": [f"tensorrt-fp16-sm{number}" for number in range(10, 50)]}, 422, "targets"),
    ("unknown field", {"colour": "red"}, 422, "colour"),
    ("unknown file", {"files": GOOD | {"virus": ("a", b"b")}}, 422, "virus"),
    ("too large", {"files": {"source": ("m.onnx", b"x" * 300_000)}}, 413, None),
    ("role", {"role": "viewer"}, 403, None),
]


@pytest.mark.parametrize(("fields", "status", "field"), [pytest.param(*one[1:], id=one[0]) for one in BAD_PUSHES])
def test_a_bad_push_is_a_problem_and_leaves_nothing(
    site: Site, fields: dict[str, Any], status: int, field: str | None
) -> None:
    answer = site.push(**fields)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem.get("field")) == (status, field)
    assert problem["type"] == f"urn:covey:problem:{problem['code']}"
    assert problem["detail"]
    assert site.client.get("/api/v1/models", headers=site.as_("viewer")).json() == {"items": [], "next": None}


def test_nobody_uploads_without_a_token(site: Site) -> None:
    answer = site.client.post("/api/v1/models/digits/versions", data={"version": "1"}, files=GOOD)
    assert answer.status_code == 401
    assert not list(site.services.blobs.folder.rglob("*"))
