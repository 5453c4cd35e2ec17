"""Tensors in shared memory: found, bounded, and nobody else's; an owner who cuts them short costs one request."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covey_agent.gateway.errors import BadRequest, MemoryFullError
from covey_agent.gateway.http_messages import HttpRequest
from covey_agent.gateway.oip import parse_request, render_answer
from covey_agent.gateway.shared_memory import MAX_REGIONS, Place, Registration, SharedMemory
from covey_agent.gateway.shared_memory_door import PREFIX, SharedMemoryDoor
from covey_agent.runner.protocol import TensorInfo
from covey_hil.testing.manifests import made_manifest

MANIFEST = made_manifest()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    (tmp_path / "object").write_bytes(bytes(range(64)))
    made = SharedMemory(100, tmp_path)
    yield made
    made.unregister_all()


def place(region: str = "r", size: int = 8, offset: int = 0) -> Place:
    return Place(shared_memory_region=region, shared_memory_byte_size=size, shared_memory_offset=offset)


def test_a_region_is_a_part_of_its_object(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", Registration(key="/object", byte_size=16, offset=8))
    assert memory.read("x", place(size=4, offset=2), 4) == bytes([10, 11, 12, 13])
    memory.write("y", place(size=4, offset=12), b"abcd")
    assert (tmp_path / "object").read_bytes()[20:24] == b"abcd"


@pytest.mark.parametrize(
    ("key", "size", "offset"),
    [
        ("/object", 65, 0),
        ("/object", 1, 64),
        ("/nothing", 1, 0),
        ("../object", 1, 0),
        ("/../object", 1, 0),
        ("/a/b", 1, 0),
        ("//object", 1, 0),
        ("", 1, 0),
        (".", 1, 0),
        ("x" * 201, 1, 0),
        ("a\0b", 1, 0),
        ("folder", 1, 0),
        ("link", 1, 0),
    ],
)
def test_what_is_no_object_of_that_size_cannot_be_registered(
    memory: SharedMemory, tmp_path: Path, key: str, size: int, offset: int
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "object")
    with pytest.raises(BadRequest):
        memory.register("r", Registration(key=key, byte_size=size, offset=offset))
    assert memory.status() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_object_cannot_be_registered(memory: SharedMemory, tmp_path: Path) -> None:
    os.chown(tmp_path / "object", 12345, 12345)
    with pytest.raises(BadRequest, match="neither to the gateway's user nor to its group"):
        memory.register("r", Registration(key="object", byte_size=8))
    os.chown(tmp_path / "object", 12345, os.getegid())
    memory.register("r", Registration(key="object", byte_size=8))


def test_registering_again(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", Registration(key="object", byte_size=8))
    # The application was started anew, and made its object anew.
    (tmp_path / "object").unlink()
    (tmp_path / "object").write_bytes(b"new one!")
    memory.register("r", Registration(key="object", byte_size=8))
    assert bytes(memory.read("x", place(), 8)) == b"new one!"
    with pytest.raises(BadRequest, match="registered already"):
        memory.register("r", Registration(key="object", byte_size=4))
    memory.unregister("r")
    memory.unregister("r")
    with pytest.raises(BadRequest, match="no shared memory region"):
        memory.read("x", place(), 8)


def test_the_number_of_regions_is_bounded_and_none_is_left_open(memory: SharedMemory) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(MAX_REGIONS):
        memory.register(f"r{number}", Registration(key="object", byte_size=8))
    with pytest.raises(BadRequest, match="64 regions"):
        memory.register("more", Registration(key="object", byte_size=8))
    memory.unregister_all()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_of_too_many_regions_the_one_goes_whose_owner_may_be_dead(memory: SharedMemory, tmp_path: Path) -> None:
    for number in range(MAX_REGIONS):
        (tmp_path / f"object{number}").write_bytes(bytes(8))
        memory.register(f"r{number}", Registration(key=f"object{number}", byte_size=8))
    for number in (3, 5):
        (tmp_path / f"object{number}").unlink()
    memory.read("x", place("r3"), 8)
    memory.register("new", Registration(key="object", byte_size=8))
    names = {region.name for region in memory.status()}
    assert ("r5" in names, "r3" in names, "new" in names, len(names)) == (False, True, True, MAX_REGIONS)


@pytest.mark.parametrize(
    "wrong", [place("other"), place(size=4), place(size=17), place(offset=9), place(offset=1 << 29)]
)
def test_a_place_that_does_not_fit(memory: SharedMemory, wrong: Place) -> None:
    memory.register("r", Registration(key="object", byte_size=16))
    with pytest.raises(BadRequest, match=r"inputs\[0\]"):
        memory.read("inputs[0].parameters", wrong, 8)
    with pytest.raises(BadRequest):
        memory.write("output 'y'", wrong, b"x" * 8)


def test_an_object_that_is_cut_short_costs_one_request(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", Registration(key="object", byte_size=64))
    os.truncate(tmp_path / "object", 4)
    with pytest.raises(BadRequest, match="cut short"):
        memory.read("x", place(), 8)


def test_a_visit_may_read_to_a_room_of_its_callers(memory: SharedMemory) -> None:
    memory.register("r", Registration(key="object", byte_size=64))
    room = memoryview(bytearray(12))
    with memory.visit(room) as visit:
        first = visit.read("a", place(size=8, offset=16), 8)
        second = visit.read("b", place(size=4, offset=0), 4)
        assert first.obj is room.obj
        assert second.obj is room.obj
        assert bytes(room) == bytes([*range(16, 24), *range(4)])
        assert memory.held == 12
    assert memory.held == 0


def test_what_waits_is_bounded(memory: SharedMemory) -> None:
    memory.register("r", Registration(key="object", byte_size=64))
    with memory.visit() as one, memory.visit() as two:
        one.read("x", place(size=60), 60)
        with pytest.raises(MemoryFullError):
            two.read("x", place(size=60), 60)
        two.read("x", place(size=40), 40)
        assert memory.held == 100
    assert memory.held == 0


# --- in requests ------------------------------------------------------------------------------------------------------


def request(parameters: Any, outputs: Any = None, **more: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": parameters, **more}
    return json.dumps({"inputs": [tensor], "outputs": outputs or []}).encode()


IN = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
OUT = {"shared_memory_region": "r", "shared_memory_byte_size": 16, "shared_memory_offset": 16}


def test_a_request_whose_tensors_lie_in_shared_memory(memory: SharedMemory, tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(struct.pack("<2f", 1, 2) + bytes(56))
    memory.register("r", Registration(key="object", byte_size=64))
    with memory.visit() as visit:
        parsed = parse_request(request(IN, [{"name": "y", "parameters": OUT}]), None, MANIFEST, visit)
        assert bytes(parsed.data[0]) == struct.pack("<2f", 1, 2)
        info, answer = TensorInfo("y", "FP32", (1, 2), 8), memoryview(struct.pack("<2f", 3, float("inf")))
        body, length = render_answer(parsed, MANIFEST, "d" * 64, [info], [answer], visit)
    assert length is None
    told = json.loads(b"".join(bytes(piece) for piece in body))["outputs"][0]
    assert told == {
        "name": "y",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {**OUT, "shared_memory_byte_size": 8},
    }
    assert (tmp_path / "object").read_bytes()[16:24] == bytes(answer)


def test_an_answer_that_has_no_room_is_refused(memory: SharedMemory) -> None:
    memory.register("r", Registration(key="object", byte_size=64))
    with memory.visit() as visit:
        parsed = parse_request(
            request(IN, [{"name": "y", "parameters": {**OUT, "shared_memory_byte_size": 4}}]), None, MANIFEST, visit
        )
        info = TensorInfo("y", "FP32", (1, 2), 8)
        with pytest.raises(BadRequest, match="4 bytes; the tensor has 8"):
            render_answer(parsed, MANIFEST, "d" * 64, [info], [memoryview(bytes(8))], visit)


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({**IN, "shared_memory_byte_size": "8"}, {}),
        ({**IN, "shared_memory_byte_size": -8}, {}),
        ({**IN, "shared_memory_offset": -1}, {}),
        ({**IN, "shared_memory_offset": 1 << 60}, {}),
        ({**IN, "shared_memory_region": 7}, {}),
        ({"shared_memory_region": "r"}, {}),
        (IN, {"data": [1, 2]}),
    ],
)
def test_places_that_make_no_sense_are_refused(memory: SharedMemory, parameters: Any, more: Any) -> None:
    memory.register("r", Registration(key="object", byte_size=64))
    with pytest.raises(BadRequest), memory.visit() as visit:
        parse_request(request(parameters, **more), None, MANIFEST, visit)
    assert memory.held == 0


# --- the door ---------------------------------------------------------------------------------------------------------


def ask(memory: SharedMemory, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    answer = SharedMemoryDoor(memory).handle(HttpRequest(method=method, body=content), PREFIX + path)
    text = b"".join(bytes(piece) for piece in answer.body)
    return answer.status, json.loads(text) if text else None


def test_register_see_and_forget(memory: SharedMemory) -> None:
    wanted = {"key": "/object", "offset": 8, "byte_size": 16}
    assert ask(memory, "POST", "region/in%20put/register", wanted) == (200, None)
    assert ask(memory, "GET", "status") == (200, [{"name": "in put", **wanted}])
    assert ask(memory, "GET", "region/in%20put/status")[1] == [{"name": "in put", **wanted}]
    assert ask(memory, "POST", "region/in%20put/unregister") == (200, None)
    assert ask(memory, "POST", "unregister") == (200, None)
    assert ask(memory, "GET", "status") == (200, [])


def test_paths_and_methods_that_are_none(memory: SharedMemory) -> None:
    for method, path, status in (
        ("POST", "register", 404),
        ("GET", "region/a/b/status", 404),
        ("GET", "region/r/erase", 404),
        ("POST", "status", 405),
        ("GET", "unregister", 405),
    ):
        assert ask(memory, method, path)[0] == status


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"\xff", b"[" * 4000, b" " * 5000, {"key": "object", "byte_size": 0}]
)
def test_bodies_that_are_none(memory: SharedMemory, body: Any) -> None:
    with pytest.raises(BadRequest):
        ask(memory, "POST", "region/r/register", body)
    with pytest.raises(BadRequest):
        ask(memory, "POST", "region/%00/register", {"key": "object", "byte_size": 8})
    with pytest.raises(BadRequest):
        ask(memory, "GET", "region/unknown/status")
