"""Bundles as files: what is no bundle is said so in one line, and members are read in place, within bounds."""

from __future__ import annotations

import queue
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey_agent.bundle import Bundle, BundleError, Bundles
from covey_contract.blocks import Block
from covey_contract.bundle import MAX_ORDER_BYTES, blob_name, order_name, order_of
from covey_contract.manifest import FileEntry
from covey_contract.messages import BlockRequest, Offer

SHA = "ab" * 32
BUILD = "cd" * 32


def made(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_members_are_read_in_place(tmp_path: Path) -> None:
    members = {order_name("d1", "m"): b"{}", order_name("d1", "n"): b"[]", blob_name(SHA): bytes(range(256))}
    with Bundle(made(tmp_path / "x.bundle", members)) as bundle:
        assert bundle.devices() == {"d1": ["m", "n"]}
        assert bundle.order(order_name("d1", "n")) == b"[]"
        assert bundle.read(blob_name(SHA), 250, 100) == bytes(range(250, 256))
        assert bundle.read(blob_name(SHA), 300, 100) == b""
        assert (bundle.size(blob_name(SHA)), bundle.size("blobs/x")) == (256, None)
        with pytest.raises(BundleError, match="has no blobs/x"):
            bundle.read("blobs/x", 0, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _data: b"",
        lambda _data: b"no zip file at all" * 100,
        lambda data: data[:-10],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-12] + b"\xff\xff\xff\x7f" + data[-8:],
    ],
    ids=["empty", "other", "cut", "half", "endless directory"],
)
def test_what_is_no_bundle_is_said_so(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = made(tmp_path / "x.bundle", {blob_name(SHA): b"x" * 1000})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle(path)


def test_a_directory_that_points_anywhere_is_no_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(blob_name(SHA), b"x")
        archive.filelist[0].header_offset = (1 << 64) - 1
    with Bundle(path) as bundle, pytest.raises(BundleError, match="cannot be read"):
        bundle.read(blob_name(SHA), 0, 1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_is_damaged_is_said_in_one_way(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = made(tmp_path / "x.bundle", {order_name("d1", "m"): b"{}" * 20, blob_name(SHA): b"x" * 400})
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data)
    try:
        with Bundle(path) as bundle:
            for device, models in bundle.devices().items():
                for model in models:
                    assert len(bundle.order(order_name(device, model))) <= MAX_ORDER_BYTES
            if bundle.size(blob_name(SHA)) is not None:
                assert len(bundle.read(blob_name(SHA), 0, 100)) <= 100
    except BundleError:
        return


def test_a_folder_and_nothing_are_no_bundles(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError):
            Bundle(path)


def test_what_is_compressed_is_not_there(tmp_path: Path) -> None:
    """So that no few bytes can become many."""
    with Bundle(made(tmp_path / "x.bundle", {blob_name(SHA): bytes(10**6)}, zipfile.ZIP_DEFLATED)) as bundle:
        assert bundle.size(blob_name(SHA)) is None


def test_an_order_is_not_larger_than_an_order(tmp_path: Path) -> None:
    name = order_name("d1", "m")
    with (
        Bundle(made(tmp_path / "x.bundle", {name: bytes(MAX_ORDER_BYTES + 1)})) as bundle,
        pytest.raises(BundleError, match="larger than an order"),
    ):
        bundle.order(name)


@pytest.mark.parametrize("name", ["orders/../m.json", "orders/d1/../x.json", "orders/d1/m", "x/orders/d1/m.json"])
def test_names_of_orders_are_plain(name: str) -> None:
    assert order_of(name) is None


def test_blocks_come_as_if_from_the_network(tmp_path: Path) -> None:
    content = bytes(range(250))
    path = made(tmp_path / "x.bundle", {blob_name(SHA): content})
    taken: queue.Queue[Block] = queue.Queue()

    def take(block: Block) -> bool:
        taken.put(block)
        return True

    bundles = Bundles(take)
    entry = FileEntry(path="f", size=250, sha256=SHA)
    request = BlockRequest(build=BUILD, file=1, base=0, bitmap=0b110)
    assert not bundles.ask(request, entry, 100, Offer())
    bundles.attach(BUILD, path)
    assert bundles.path(BUILD) == path
    assert bundles.ask(request, entry, 100, Offer())
    found = [taken.get(timeout=10) for _ in range(2)]
    assert [(one.index, one.data) for one in found] == [(1, content[100:200]), (2, content[200:])]
    assert all(one.build_prefix == bytes.fromhex(BUILD[:16]) for one in found)
    other = FileEntry(path="g", size=251, sha256=SHA)
    assert not bundles.ask(request, other, 100, Offer())
    bundles.drop(BUILD)
    assert bundles.path(BUILD) is None
    assert not bundles.ask(request, entry, 100, Offer())
