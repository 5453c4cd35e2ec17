"""tritonclient's gRPC client, unchanged, against the door and a real gateway."""

from __future__ import annotations

import queue
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelInstanceGroup
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from covey_agent.grpc_door.messages import KINDS, SERVICE

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Rig

MODEL, SIZE = "scale", 8
ROWS = np.arange(2 * SIZE, dtype=np.float32).reshape(2, SIZE)


@pytest.fixture
def door(rig: Rig) -> Iterator[int]:
    """The port of a door that is a process of its own."""
    words = ["grpc", "--port", "0", "--inference-socket", str(rig.run_dir / "inference.sock")]
    process = subprocess.Popen([sys.executable, "-m", "covey_agent", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield int(line.split("127.0.0.1:")[1].split(",")[0])
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said, said


@pytest.fixture
def client(door: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{door}") as made:
        yield made


def tensor(rows: np.ndarray[Any, Any] = ROWS) -> Any:
    return triton.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows)


def test_what_the_client_may_ask(rig: Rig, client: Any) -> None:
    assert client.is_server_live()
    assert not client.is_model_ready(MODEL)
    build = rig.build(3.0, "1.0")
    rig.serve(build)
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1.0")
    assert not client.is_model_ready(MODEL, "2.0")
    assert client.get_server_metadata().name == "covey"
    told = client.get_model_metadata(MODEL)
    assert (told.name, list(told.versions)) == (MODEL, ["1.0"])
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [("x", "FP32", [-1, SIZE])]
    assert [(one.name, one.state) for one in client.get_model_repository_index().models] == [(MODEL, "READY")]


def test_configuration_and_statistics(rig: Rig, client: Any) -> None:
    """As tritonclient's own messages read them, and the same as HTTP tells."""
    build = rig.build(3.0, "1.0", max_batch=8)
    rig.serve(build)
    for _ in range(3):
        client.infer(MODEL, [tensor()])
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [tensor(ROWS[:, :3].copy())])
    config = client.get_model_config(MODEL, "1.0").config
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, "onnxruntime", 0)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("x", TYPE_FP32, [-1, SIZE])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("y", TYPE_FP32, [-1, SIZE])]
    assert config.version_policy.latest.num_versions == 1
    assert [one.kind for one in config.instance_group] == [ModelInstanceGroup.KIND_AUTO]
    assert {key: one.string_value for key, one in config.parameters.items()} == {"unit": "test"}
    [told] = client.get_inference_statistics(MODEL).model_stats
    assert (told.name, told.version, told.inference_count, told.execution_count) == (MODEL, "1.0", 3, 3)
    assert told.inference_stats.success.count == told.inference_stats.compute_infer.count == 3
    assert 0 < told.inference_stats.compute_infer.ns <= told.inference_stats.success.ns
    assert told.last_inference > 1_700_000_000_000
    assert [(one.batch_size, one.compute_infer.count) for one in told.batch_stats] == [(2, 3)]
    assert [one.name for one in client.get_inference_statistics().model_stats] == [MODEL]
    with triton_http.InferenceServerClient(f"127.0.0.1:{rig.port}") as http:
        assert http.get_model_config(MODEL) == http.get_model_config(MODEL, "1.0")
        assert http.get_model_config(MODEL)["input"][0]["data_type"] == "TYPE_FP32"
        [same] = http.get_inference_statistics(MODEL)["model_stats"]
        assert same["inference_stats"]["success"]["ns"] == told.inference_stats.success.ns
    for ask in (client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="there is no model 'nothing'"):
            ask("nothing")
        with pytest.raises(InferenceServerException, match="version '2.0'"):
            ask(MODEL, "2.0")


def test_an_inference_is_what_http_gives(rig: Rig, client: Any) -> None:
    build = rig.build(3.0, "1.0")
    rig.serve(build)
    result = client.infer(MODEL, [tensor()], request_id="seven", outputs=[triton.InferRequestedOutput("y")])
    np.testing.assert_array_equal(result.as_numpy("y"), ROWS * 3)
    response = result.get_response()
    assert (response.id, response.model_version) == ("seven", "1.0")
    assert response.parameters["covey_build"].string_param == build.digest
    # Without a word on outputs: all of them.
    np.testing.assert_array_equal(client.infer(MODEL, [tensor()]).as_numpy("y"), ROWS * 3)


def test_elements_as_numbers(rig: Rig, door: int) -> None:
    """Typed contents instead of raw ones, as other clients send them."""
    rig.serve(rig.build(3.0, "1.0"))
    request = KINDS["ModelInferRequest"](model_name=MODEL)
    request.inputs.add(name="x", datatype="FP32", shape=[2, SIZE]).contents.fp32_contents.extend(ROWS.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{door}") as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=KINDS["ModelInferRequest"].SerializeToString,
            response_deserializer=KINDS["ModelInferResponse"].FromString,
        )
        answer = ask(request, timeout=20)
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), ROWS.ravel() * 3)


@pytest.mark.parametrize(
    ("model", "rows", "code", "words"),
    [
        ("nothing", ROWS, "NOT_FOUND", "there is no model 'nothing'"),
        (MODEL, ROWS[:, :3].copy(), "INVALID_ARGUMENT", r"inputs\[0\].shape"),
    ],
)
def test_refusals_name_the_field(rig: Rig, client: Any, model: str, rows: Any, code: str, words: str) -> None:
    rig.serve(rig.build(3.0, "1.0"))
    with pytest.raises(InferenceServerException, match=words) as refused:
        client.infer(model, [tensor(rows)])
    assert code in refused.value.status()


def test_no_build_and_no_gateway(rig: Rig, client: Any) -> None:
    rig.serve(rig.build(3.0, "1.0"))
    client.infer(MODEL, [tensor()])
    rig.stop()
    assert not client.is_server_ready()
    with pytest.raises(InferenceServerException, match="does not answer") as refused:
        client.infer(MODEL, [tensor()])
    assert "UNAVAILABLE" in refused.value.status()
    rig.start()
    rig.serve(rig.build(4.0, "1.1"))
    np.testing.assert_array_equal(client.infer(MODEL, [tensor()]).as_numpy("y"), ROWS * 4)


def test_the_callers_time_is_the_gateways(rig: Rig, client: Any) -> None:
    rig.serve(rig.build(3.0, "1.0", heavy=1600))
    with pytest.raises(InferenceServerException, match=r"(?i)deadline|time"):
        client.infer(MODEL, [tensor()], client_timeout=0.01)  # the model alone takes longer


def test_a_stream_answers_in_order_and_outlives_a_refusal(rig: Rig, client: Any) -> None:
    rig.serve(rig.build(3.0, "1.0"))
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for factor in (1, 2):
        client.async_stream_infer(MODEL, [tensor(ROWS * factor)])
    client.async_stream_infer("nothing", [tensor()])
    client.async_stream_infer(MODEL, [tensor()])
    told = [answers.get(timeout=20) for _ in range(4)]
    client.stop_stream()
    for (result, _), factor in zip((told[0], told[1], told[3]), (1, 2, 1), strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), ROWS * factor * 3)
    assert "no model 'nothing'" in str(told[2][1])


def test_shared_memory(rig: Rig, client: Any) -> None:
    rig.serve(rig.build(3.0, "1.0"))
    name = f"covey-test-{uuid.uuid4().hex[:12]}"
    into, out = (shm.create_shared_memory_region(what, f"{name}-{what}", ROWS.nbytes) for what in ("in", "out"))
    try:
        shm.set_shared_memory_region(into, [ROWS])
        for what in ("in", "out"):
            client.register_system_shared_memory(what, f"{name}-{what}", ROWS.nbytes)
        assert sorted(client.get_system_shared_memory_status().regions) == ["in", "out"]
        given = triton.InferInput("x", list(ROWS.shape), "FP32")
        given.set_shared_memory("in", ROWS.nbytes)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("out", ROWS.nbytes)
        client.infer(MODEL, [given], outputs=[wanted])
        np.testing.assert_array_equal(shm.get_contents_as_numpy(out, np.float32, ROWS.shape), ROWS * 3)
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
    finally:
        for handle in (into, out):
            shm.destroy_shared_memory_region(handle)


def test_the_gateway_knows_nothing_of_it(rig: Rig, client: Any) -> None:
    """Its memory is the same for those who do not use it."""
    assert client.is_server_live()
    assert rig.process is not None
    maps = psutil.Process(rig.process.pid).memory_maps()
    assert not any("grpc" in one.path or "protobuf" in one.path for one in maps)
