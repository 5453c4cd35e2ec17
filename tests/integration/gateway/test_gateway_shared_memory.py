"""tritonclient's shared memory, unchanged, against a real gateway."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

MODEL, SIZE = "scale", 8
BYTES = 2 * SIZE * 4


@pytest.fixture
def regions() -> Iterator[tuple[Any, Any, str]]:
    name = f"covey-test-{uuid.uuid4().hex[:12]}"
    handles = [shm.create_shared_memory_region(what, f"{name}-{what}", BYTES) for what in ("in", "out")]
    yield handles[0], handles[1], name
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


def test_inputs_and_outputs_in_shared_memory(rig: Any, regions: tuple[Any, Any, str]) -> None:
    rig.serve(rig.build(2.0, "1.0"))
    into, out, name = regions
    x = np.arange(2 * SIZE, dtype=np.float32).reshape(2, SIZE)
    shm.set_shared_memory_region(into, [x])
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        assert "system_shared_memory" in client.get_server_metadata()["extensions"]
        client.register_system_shared_memory("in", f"{name}-in", BYTES)
        client.register_system_shared_memory("out", f"{name}-out", BYTES)
        assert [region["name"] for region in client.get_system_shared_memory_status()] == ["in", "out"]

        tensor = triton.InferInput("x", [2, SIZE], "FP32")
        tensor.set_shared_memory("in", BYTES)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("out", BYTES)
        result = client.infer(MODEL, [tensor], outputs=[wanted])
        told = result.get_output("y")
        y = shm.get_contents_as_numpy(out, np.float32, told["shape"])
        assert np.array_equal(y, x * 2)

        # One of the two in shared memory, the other on the wire, also works.
        plain = client.infer(MODEL, [tensor], outputs=[triton.InferRequestedOutput("y", binary_data=True)])
        assert np.array_equal(plain.as_numpy("y"), x * 2)

        client.unregister_system_shared_memory("in")
        with pytest.raises(InferenceServerException, match="no shared memory region 'in'"):
            client.infer(MODEL, [tensor], outputs=[wanted])
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []


def test_statistics_of_all_models(rig: Any) -> None:
    rig.serve(rig.build(2.0, "1.0"))
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        tensor = triton.InferInput("x", [1, SIZE], "FP32").set_data_from_numpy(np.ones((1, SIZE), np.float32))
        client.infer(MODEL, [tensor])
        (told,) = client.get_inference_statistics()["model_stats"]
        assert (told["name"], told["inference_count"]) == (MODEL, 1)
        assert client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"] == 1
