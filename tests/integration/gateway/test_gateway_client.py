"""The applications' client against a real gateway: over TCP and Unix socket, in shared memory and without, through a restart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.client import SHARED_MEMORY_FROM, Client, ClientError
from covey_agent.gateway.control_api import Shutdown
from covey_hil.processes import wait_for

MODEL, SIZE = "scale", 8
SHM = Path("/dev/shm")  # noqa: S108  # where the client's regions are


def rows(count: int) -> Any:
    return np.arange(count * SIZE, dtype=np.float32).reshape(count, SIZE)


LARGE = rows(SHARED_MEMORY_FROM // (SIZE * 4) + 1)


@pytest.fixture(params=["tcp", "unix", "tcp, shared memory", "unix, shared memory"])
def client(rig: Any, request: pytest.FixtureRequest) -> Iterator[Client]:
    address = f"127.0.0.1:{rig.port}" if "tcp" in request.param else rig.run_dir / "inference.sock"
    with Client(address, shared_memory="shared" in request.param) as made:
        yield made


def regions() -> set[str]:
    """Names of clients' regions; those of other clients come and go at any time."""
    return {path.name for path in SHM.iterdir() if re.fullmatch(r"covey-[0-9a-f]{16}", path.name)}


def test_arrays_in_arrays_out(rig: Any, client: Client) -> None:
    build = rig.build(2.0, "1.0")
    assert not client.ready(MODEL)
    rig.serve(build)
    assert client.ready(MODEL)
    assert client.ready()
    before = regions()
    for array in (rows(1), LARGE, rows(3), LARGE * 3, np.tile(LARGE, (4, 1))):
        outputs = client.infer(MODEL, {"x": array})
        assert np.array_equal(outputs["y"], array * 2)
        assert (outputs.version, outputs.build, outputs.target) == ("1.0", build.digest, "onnxruntime-fp32")
    assert np.array_equal(client.infer(MODEL, rows(2), outputs=["y"])["y"], rows(2) * 2)
    strided = np.asfortranarray(LARGE)
    assert np.array_equal(client.infer(MODEL, strided)["y"], LARGE * 2)
    assert np.array_equal(client.infer(MODEL, LARGE.astype(">f4"))["y"], LARGE * 2)
    left = regions() - before
    wait_for("the names of regions to go", lambda: not left & regions(), 5)  # also while the client lives
    assert client.metadata(MODEL)["parameters"]["unit"] == "test"
    client.lock("test")
    assert rig.status().locked_by == ("test",)
    client.unlock("test")
    assert rig.status().locked_by == ()


def test_what_is_refused_says_why(rig: Any, client: Client) -> None:
    with pytest.raises(ClientError, match="no model 'scale'") as nothing:
        client.infer(MODEL, {"x": rows(1)})
    assert nothing.value.status == 404
    rig.serve(rig.build(2.0, "1.0"))
    for wrong, words in (
        ({"z": rows(1)}, "not an input"),
        ({"x": rows(1).astype(np.float64)}, "datatype"),
        ({"x": rows(1)[:, :3]}, "shape"),
        ({"x": np.array(["a"])}, "no tensor"),
    ):
        with pytest.raises(ClientError, match=words):
            client.infer(MODEL, wrong)
    with pytest.raises(ClientError, match="not an output"):
        client.infer(MODEL, {"x": rows(1)}, outputs=["z"])
    with pytest.raises(ClientError, match="not the name of a model"):
        client.infer("../health", {"x": rows(1)})
    assert np.array_equal(client.infer(MODEL, rows(1))["y"], rows(1) * 2)  # and the connection goes on


def test_a_gateway_that_was_started_anew(rig: Any, client: Client) -> None:
    build = rig.build(2.0, "1.0")
    rig.serve(build)
    client.infer(MODEL, {"x": LARGE})
    port = rig.port
    rig.order(Shutdown())
    rig.process.wait(15)
    assert not client.ready()
    rig.start("--port", str(port))
    rig.serve(build)
    assert np.array_equal(client.infer(MODEL, {"x": LARGE})["y"], LARGE * 2)


@pytest.mark.parametrize("address", ["8090", "localhost", "localhost:http", ""])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        Client(address)
