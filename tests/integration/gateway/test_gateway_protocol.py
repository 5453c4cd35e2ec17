"""The Open Inference Protocol as callers see it: tritonclient unchanged, raw HTTP, malformed input."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

X = np.arange(8, dtype=np.float32).reshape(1, 8)


def ask(rig: Any, x: np.ndarray[Any, Any] = X, *, binary: bool = True, version: str = "", **options: Any) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
        return client.infer("scale", [tensor], model_version=version, outputs=outputs, request_id="r-1", **options)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers(rig: Any, binary: bool) -> None:
    build = rig.build(2.0, "1.0")
    rig.serve(build)
    result = ask(rig, binary=binary)
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)
    answer = result.get_response()
    assert answer["model_version"] == "1.0"
    assert answer["id"] == "r-1"
    assert answer["parameters"] == {"covey_build": build.digest, "covey_target": "onnxruntime-fp32"}
    x3 = np.ones((3, 8), np.float32)
    np.testing.assert_array_equal(ask(rig, x3, binary=binary, version="1.0").as_numpy("y"), x3 * 2)


def test_tritonclient_metadata(rig: Any) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert not client.is_model_ready("scale")
        rig.serve(rig.build(2.0, "1.0"))
        assert client.is_model_ready("scale")
        assert client.is_model_ready("scale", "1.0")
        assert not client.is_model_ready("scale", "0.9")
        assert client.get_server_metadata()["name"] == "covey"
        metadata = client.get_model_metadata("scale")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
        assert metadata["versions"] == ["1.0"]
        assert metadata["parameters"]["unit"] == "test"
        assert client.get_model_config("scale")["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 8]}
        assert client.get_model_repository_index() == [
            {"name": "scale", "version": "1.0", "state": "READY", "reason": ""}
        ]
        tensor = triton.InferInput("x", [1, 8], "FP32").set_data_from_numpy(X)
        client.infer("scale", [tensor])  # without outputs: all, in binary
        [stats] = client.get_inference_statistics("scale")["model_stats"]
        assert stats["inference_count"] == 1
        with pytest.raises(InferenceServerException, match="gzip"):
            client.infer("scale", [tensor], request_compression_algorithm="gzip")


def post(rig: Any, body: bytes, headers: dict[str, str] | None = None, path: str = "/v2/models/scale/infer") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=20)
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer, response.headers


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": list(range(8)), **changes}


MALFORMED = [
    ({"inputs": [tensor(shape=[1, 7])]}, "inputs[0].shape"),
    ({"inputs": [tensor(shape=[8])]}, "inputs[0].shape"),
    ({"inputs": [tensor(shape=[-1, 8])]}, "inputs[0].shape"),
    ({"inputs": [tensor(shape=[0, 8], data=[])]}, "inputs[0].shape"),
    ({"inputs": [tensor(shape="all")]}, "$.inputs[0]"),
    ({"inputs": [tensor(datatype="FP64")]}, "inputs[0].datatype"),
    ({"inputs": [tensor(datatype="BYTES")]}, "inputs[0].datatype"),
    ({"inputs": [tensor(name="z")]}, "inputs[0].name"),
    ({"inputs": [tensor(), tensor()]}, "inputs[1].name"),
    ({"inputs": []}, "inputs"),
    ({}, "inputs"),
    ([], "not valid"),
    ({"inputs": [tensor(data=[1, 2])]}, "inputs[0].data"),
    ({"inputs": [tensor(data=["a"] * 8)]}, "inputs[0].data"),
    ({"inputs": [tensor(data=[[[1] * 8]])]}, "inputs[0].data"),
    ({"inputs": [tensor(data=[[1] * 4, 5])]}, "inputs[0].data"),
    ({"inputs": [tensor(data=None)]}, "inputs[0].data"),
    ({"inputs": [tensor(parameters={"binary_data_size": 32})]}, "inputs[0].data"),
    ({"inputs": [tensor()], "outputs": [{"name": "q"}]}, "outputs[0].name"),
    ({"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data"),
    ({"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
    ({"inputs": [tensor()], "parameters": {"timeout": "soon"}}, "parameters.timeout"),
]


def test_malformed_requests_are_refused_with_the_field_named(rig: Any) -> None:
    rig.serve(rig.build(2.0, "1.0"))
    for request, field in MALFORMED:
        status, answer, _ = post(rig, json.dumps(request).encode())
        assert status == 400, request
        assert field in answer["error"], (request, answer)
    # Malformed requests are their callers' fault and count against no build.
    assert rig.collect().windows == ()
    status, answer, _ = post(rig, json.dumps({"inputs": [tensor()]}).encode())
    assert (status, answer["outputs"][0]["data"]) == (200, [2.0 * value for value in range(8)])


@pytest.mark.parametrize(
    ("size", "announced", "length", "field"),
    [
        (32, 31, None, "binary_data_size"),
        (31, 32, None, "binary_data_size"),
        (40, 32, None, "bytes more"),
        (32, -1, None, "binary_data_size"),
        (32, 32, "9999", "Inference-Header-Content-Length"),
        (32, 32, "x", "Inference-Header-Content-Length"),
        (32, 32, "3", "not valid"),
    ],
)
def test_malformed_binary_tensors(rig: Any, size: int, announced: int, length: str | None, field: str) -> None:
    rig.serve(rig.build(2.0, "1.0"))
    header = {
        "inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "parameters": {"binary_data_size": announced}}]
    }
    head = json.dumps(header).encode()
    status, answer, _ = post(rig, head + bytes(size), {"Inference-Header-Content-Length": length or str(len(head))})
    assert status == 400
    assert field in answer["error"]


def test_unknown_things(rig: Any) -> None:
    assert post(rig, b"{}")[0] == 404
    rig.serve(rig.build(2.0, "1.0"))
    body = json.dumps({"inputs": [tensor()]}).encode()
    assert post(rig, body, path="/v2/models/scale/versions/9/infer")[0] == 404
    assert post(rig, body, path="/v2/models/scale/versions/1.0/infer")[0] == 200
    assert post(rig, body, path="/v3")[0] == 404
    assert post(rig, body, path="/v2/models/scale/ready")[0] == 405
    assert post(rig, body, {"Content-Length": str(1 << 40)})[0] == 413


def raw(rig: Any, data: bytes) -> bytes:
    """What the gateway answers to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", rig.port), timeout=20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


def test_broken_http(rig: Any) -> None:
    assert b" 400 " in raw(rig, b"\x00\x01nonsense\r\n\r\n")
    assert b" 431 " in raw(rig, b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n")
    assert raw(rig, b"GET /v2 HT") == b""
    pipelined = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n" * 3
    assert raw(rig, pipelined).count(b" 200 OK") == 3


def test_unix_socket(rig: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(rig.run_dir / "inference.sock"))
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b'"covey"' in sock.recv(65536)
