"""A delta saves bytes and can do nothing else: whatever is wrong with it, the very bytes of the build are there in the end."""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import bsdiff4
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.delta import patched
from covey_agent.downloads import Downloads
from covey_agent.fetch import FetchLimits, adopt_all
from covey_agent.store import Store
from covey_contract.blocks import Block, blocks_of
from covey_contract.delta import MAGIC, SEGMENT_BLOCKS, Segment, encode_segment
from covey_contract.manifest import BLOCK_BYTES
from covey_contract.messages import BlockRequest, DeltaOffer, Offer
from covey_hil.testing.random_builds import RandomBuild

BLOCKS = 20


def lightly_changed(data: bytes) -> bytes:
    """As a fine-tune does in INT8: one byte of four is one more."""
    draw, changed = Random(4), bytearray(data)
    for at in draw.sample(range(len(changed)), len(changed) // 4):
        changed[at] = (changed[at] + 1) % 256
    return bytes(changed)


def delta_between(old: bytes, new: bytes, *, leave_out: int | None = None) -> bytes:
    source = hashlib.sha256(old).hexdigest()
    parts = [MAGIC]
    for first in range(0, -(-len(new) // BLOCK_BYTES), SEGMENT_BLOCKS):
        start, end = first * BLOCK_BYTES, min((first + SEGMENT_BLOCKS) * BLOCK_BYTES, len(new))
        if first != leave_out:
            patch = bsdiff4.diff(old[start:end], new[start:end])
            count = -(-(end - start) // BLOCK_BYTES)
            parts.append(encode_segment(Segment(1, first, count, source, start, len(old[start:end]), 0, 0), patch))
    return b"".join(parts)


class Site:
    """A device that has the old build, and a server of the new one and its delta."""

    def __init__(self, folder: Path, store: Store) -> None:
        data = Random(1).randbytes(BLOCKS * BLOCK_BYTES - 77)
        self.old = RandomBuild.of([data], "1", BLOCK_BYTES)
        self.new = RandomBuild.of([lightly_changed(data)], "2", BLOCK_BYTES)
        self.store, self.folder = store, folder / "fetch"
        for entry, content in zip(self.old.manifest.files, self.old.contents[1:], strict=True):
            store.blob(entry.sha256).write_bytes(content)
        store.stage(self.old.manifest, self.old.manifest_bytes)
        self.delta = delta_between(data, self.new.contents[1])
        self.asked: Counter[str] = Counter()
        self.listened: list[tuple[str, bool]] = []
        self.answers: Callable[[bytes], bytes] = lambda data: data
        self.start()

    def start(self) -> None:
        """The agent begins anew."""
        self._pending: list[BlockRequest] = []
        self.downloads = Downloads(
            self.folder,
            self.store,
            FetchLimits(),
            self._pending.append,
            lambda build, on: self.listened.append((build, on)),
        )

    @property
    def name(self) -> str:
        return hashlib.sha256(self.delta).hexdigest()

    def offer(self, base: str | None = None) -> Offer:
        return Offer(delta=DeltaOffer(base=base or self.old.digest, sha256=self.name, size=len(self.delta)))

    def fetch(self, offer: Offer, *, rounds: int = 400, start: float = 0.0) -> bool:
        """Whether all is here after so many seconds."""
        for now in range(rounds):
            at = start + now
            if self.downloads.go_on("m", self.new.digest, self.new.manifest, at, connected=True, offer=lambda: offer):
                return True
            requests, self._pending[:] = list(self._pending), []
            for request in requests:
                self._answer(request, at)
        return False

    def _answer(self, request: BlockRequest, now: float) -> None:
        if request.build == self.new.digest:
            self.asked["build"] += request.bitmap.bit_count() if request.file else 0
            for block in self.new.answers(request):
                self.downloads.take(block, now)
            return
        assert (request.build, request.file) == (self.name, 0)
        for index in blocks_of(request.base, request.bitmap):
            self.asked["delta"] += 1
            data = self.answers(self.delta[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
            self.downloads.take(Block(bytes.fromhex(self.name[:16]), 0, index, data), now)

    def check(self) -> int:
        """The very bytes are here; how many were fetched."""
        fetched = self.downloads.stop("m")
        adopt_all(self.new.manifest, self.downloads.folder(self.new.digest), self.store)
        self.store.stage(self.new.manifest, self.new.manifest_bytes)
        assert self.store.blob(self.new.manifest.files[0].sha256).read_bytes() == self.new.contents[1]
        return fetched


@pytest.fixture
def site(tmp_path: Path, store: Store) -> Site:
    return Site(tmp_path, store)


def test_a_light_change_costs_the_delta_and_no_block(site: Site) -> None:
    assert site.fetch(site.offer())
    fetched = site.check()
    assert site.asked["build"] == 0
    assert fetched == len(site.delta) + len(site.new.contents[0])
    assert fetched < len(site.new.contents[1]) / 2
    assert (site.name, False) in site.listened


def test_what_the_delta_leaves_out_is_fetched(site: Site) -> None:
    site.delta = delta_between(site.old.contents[1], site.new.contents[1], leave_out=SEGMENT_BLOCKS)
    assert site.fetch(site.offer())
    site.check()
    assert site.asked["build"] == SEGMENT_BLOCKS


@pytest.mark.parametrize("spoiled", ["header", "patch", "rubbish", "of another build"])
def test_a_delta_that_is_wrong_is_made_up_for(site: Site, spoiled: str) -> None:
    """Its digest is right: the server itself, or whoever speaks for it, is wrong or worse."""
    if spoiled == "header":
        site.delta = MAGIC + b"\xff" * 40
    elif spoiled == "patch":
        site.delta = site.delta[:-1000] + bytes(1000)
    elif spoiled == "rubbish":
        site.delta = Random(2).randbytes(300_000)
    else:
        site.delta = delta_between(site.old.contents[1], Random(3).randbytes(len(site.new.contents[1])))
    assert site.fetch(site.offer())
    site.check()
    assert site.asked["build"] == (BLOCKS - 2 * SEGMENT_BLOCKS if spoiled == "patch" else BLOCKS)


def test_one_that_never_comes_is_given_up(site: Site) -> None:
    site.answers = lambda _data: b""
    assert site.fetch(site.offer())
    site.check()
    assert site.asked["build"] == BLOCKS


def test_without_the_older_build_it_is_not_asked_for(site: Site) -> None:
    assert site.fetch(site.offer(base="0" * 64))
    site.check()
    assert site.asked["delta"] == 0


def test_an_older_file_that_is_damaged_gives_nothing_false(site: Site) -> None:
    blob = site.store.blob(site.old.manifest.files[0].sha256)
    blob.chmod(0o644)
    data = bytearray(site.old.contents[1])
    data[3 * BLOCK_BYTES] ^= 1
    blob.write_bytes(data)
    assert site.fetch(site.offer())
    site.check()
    assert site.asked["build"] == 1


def test_a_restart_asks_for_no_byte_of_the_delta_again(site: Site) -> None:
    site.delta = delta_between(site.old.contents[1], site.new.contents[1], leave_out=0)
    blocks = -(-len(site.delta) // BLOCK_BYTES)
    assert blocks > 1
    for _ in range(200):
        if site.fetch(site.offer(), rounds=1):
            break
        site.downloads.stop("m")
        site.start()
    site.fetch(site.offer(), start=1000.0)
    site.check()
    assert site.asked["delta"] == blocks


def test_memory_does_not_grow_with_the_build(tmp_path: Path, store: Store) -> None:
    site = Site(tmp_path, store)
    tracemalloc.start()
    try:
        assert site.fetch(site.offer())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8_000_000


def test_a_patch_that_unpacks_to_gigabytes_is_refused() -> None:
    bomb = bz2.compress(bytes(50_000_000))
    for control, difference, extra in ((bomb, b"", b""), (b"", bomb, b""), (b"", b"", bomb)):
        packed = [part or bz2.compress(b"") for part in (control, difference, extra)]
        head = struct.pack("<8sqqq", b"BSDIFF40", len(packed[0]), len(packed[1]), 1000)
        with pytest.raises(ValueError, match="unpacks to more"):
            patched(b"x" * 1000, head + b"".join(packed))


@given(st.binary(max_size=200), st.booleans())
def test_any_patch_is_applied_or_refused(data: bytes, framed: bool) -> None:
    packed = bz2.compress(data[:48]), bz2.compress(data[48:100]), bz2.compress(data[100:])
    head = struct.pack("<8sqqq", b"BSDIFF40", len(packed[0]), len(packed[1]), 64)
    with contextlib.suppress(ValueError):
        assert len(patched(b"source" * 20, head + b"".join(packed) if framed else data)) <= 64
