"""Fetching by bitmap: every block once, whatever is lost, corrupt, killed in between or refused by the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey_agent.errors import StepError
from covey_agent.fetch import Fetcher, adopt_all, storage_step_error
from covey_agent.partial import Partial
from covey_agent.store import CorruptError, Store
from covey_contract.blocks import Block
from covey_contract.messages import Broadcast
from covey_contract.reasons import Reason
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]


def pump(
    fetcher: Fetcher,
    build: RandomBuild,
    *,
    stop_after: int | None = None,
    spoil: Callable[[Block], Block | None] = lambda block: block,
    start: float = 0.0,
) -> Counter[tuple[int, int]]:
    """Answer until done; which blocks were asked for. Time goes on by a second a round."""
    asked: Counter[tuple[int, int]] = Counter()
    now, written = start, 0
    for _ in range(10_000):
        if fetcher.done:
            break
        for request in fetcher.tick(now, connected=True):
            for block in build.answers(request):
                asked[block.file, block.index] += 1
                answer = spoil(block)
                if answer is not None:
                    fetcher.block(answer, now)
                    written += 1
                if stop_after is not None and written >= stop_after:
                    return asked
        now += 1.0
    return asked


def test_every_block_is_asked_for_once(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((300_000, 5, 0, 4096))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    asked = pump(fetcher, build)
    assert fetcher.done
    assert fetcher.fraction == 1.0
    assert set(asked.values()) == {1}
    assert fetcher.progress.bytes == sum(map(len, build.contents))
    adopt_all(build.manifest, fetcher.folder, store)
    folder = store.stage(build.manifest, build.manifest_bytes)
    assert [(folder / f"f{n}.bin").read_bytes() for n in range(4)] == build.contents[1:]


@pytest.mark.parametrize("flushed", [True, False])
def test_a_restart_asks_for_no_verified_block_again(
    tmp_path: Path, store: Store, random_build: Make, flushed: bool
) -> None:
    """Not even for those that were written after the bitmap was last stored, as SIGKILL leaves them."""
    build = random_build((600_000, 100_000))
    first = build.fetcher(tmp_path, store, sync_blocks=16)
    first.open()
    asked = pump(first, build, stop_after=70)
    assert not first.done
    if flushed:
        first.close()
    second = build.fetcher(tmp_path, store, sync_blocks=16)
    second.open()
    assert 0.3 < second.fraction < 0.6
    written = first.progress.blocks
    again = pump(second, build)
    assert second.done
    assert written + second.progress.blocks == sum(-(-len(content) // 4096) for content in build.contents)
    repeated = {key for key in again if key in asked}
    assert len(repeated) <= 48  # only what was asked for and not yet answered
    assert sum(again.values()) == second.progress.blocks


def test_lost_blocks_are_asked_for_again_after_silence(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((200_000,))
    lost: set[tuple[int, int]] = set()

    def lose_each_once(block: Block) -> Block | None:
        key = (block.file, block.index)
        if key in lost:
            return block
        lost.add(key)
        return None

    fetcher = build.fetcher(tmp_path, store, silence_s=3.0)
    fetcher.open()
    asked = pump(fetcher, build, spoil=lose_each_once)
    assert fetcher.done
    assert set(asked.values()) == {2}
    assert fetcher.tick(1e9, connected=True) == []


def test_nothing_is_asked_while_disconnected_and_that_time_does_not_count(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((200_000,))
    fetcher = build.fetcher(tmp_path, store, deadline_s=100.0)
    fetcher.open()
    assert fetcher.tick(0.0, connected=True)
    assert fetcher.tick(5000.0, connected=False) == []
    assert fetcher.tick(5001.0, connected=True)
    with pytest.raises(StepError) as failed:
        fetcher.tick(5200.0, connected=True)
    assert failed.value.reason is Reason.FETCH_FAILED


def test_truncated_and_corrupt_blocks_are_dropped_and_asked_for_again(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((100_000,))
    spoilt: set[tuple[int, int]] = set()

    def spoil_each_once(block: Block) -> Block | None:
        key = (block.file, block.index)
        if key in spoilt:
            return block
        spoilt.add(key)
        data = block.data[:-1] if block.index % 2 else bytes([block.data[0] ^ 1]) + block.data[1:]
        return Block(block.build_prefix, block.file, block.index, data)

    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    pump(fetcher, build, spoil=spoil_each_once)
    assert fetcher.done
    assert fetcher.progress.bad >= 25
    adopt_all(build.manifest, fetcher.folder, store)
    assert store.stage(build.manifest, build.manifest_bytes).is_dir()


def test_a_server_of_nothing_but_rubbish_is_given_up(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((100_000,))
    fetcher = build.fetcher(tmp_path, store, bad_blocks=5)
    fetcher.open()
    with pytest.raises(StepError) as failed:
        pump(fetcher, build, spoil=lambda block: Block(block.build_prefix, block.file, block.index, b"x"))
    assert failed.value.reason is Reason.FETCH_FAILED


def test_blocks_of_others_and_blocks_not_asked_for_are_ignored(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((100_000,))
    fetcher = build.fetcher(tmp_path, store, bad_blocks=0)
    fetcher.open()
    prefix = bytes.fromhex(build.digest[:16])
    for block in (Block(b"otherone", 0, 0, b"x"), Block(prefix, 7, 0, b"x"), Block(prefix, 1, 0, b"x")):
        fetcher.block(block, 0.0)
    assert fetcher.progress.bad == 0


def test_blobs_that_are_here_are_not_fetched(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((50_000, 60_000))
    entry = build.manifest.files[0]
    (tmp_path / "one").write_bytes(build.contents[1])
    store.adopt(tmp_path / "one", entry)
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    asked = pump(fetcher, build)
    assert {file for file, _ in asked} == {0, 2}


def test_a_file_that_rotted_on_disk_is_found_out_and_only_its_bad_blocks_fetched(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((100_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    pump(fetcher, build)
    fetcher.close()
    path = fetcher.folder / build.manifest.files[0].sha256
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        adopt_all(build.manifest, fetcher.folder, store)
    again = build.fetcher(tmp_path, store)
    again.open()
    assert list(pump(again, build)) == [(1, 1)]
    adopt_all(build.manifest, again.folder, store)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 60), max_size=6), seed=st.integers(0, 10**6), size=st.integers(1, 400_000))
def test_killed_anywhere_it_ends_with_the_very_bytes(
    tmp_path_factory: pytest.TempPathFactory, random_build: Make, cuts: list[int], seed: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("fetch")
    store = Store(folder)
    store.prepare()
    build = random_build((size,), seed)
    for cut in [*cuts, None]:
        fetcher = build.fetcher(folder, store, sync_blocks=8)
        fetcher.open()
        pump(fetcher, build, stop_after=cut)
    assert fetcher.done
    adopt_all(build.manifest, fetcher.folder, store)
    assert (store.stage(build.manifest, build.manifest_bytes) / "f0.bin").read_bytes() == build.contents[1]


def test_a_full_disk_is_found_out_before_anything_is_fetched(
    tmp_path: Path, store: Store, random_build: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    build = random_build((100_000,))
    fetcher = build.fetcher(tmp_path, store)
    with pytest.raises(StepError) as failed:
        fetcher.open()
    assert failed.value.reason is Reason.NO_SPACE
    assert not list(fetcher.folder.iterdir())
    assert storage_step_error(OSError(errno.EIO, "Input/output error")).reason is Reason.STORAGE_ERROR


def test_a_bitmap_of_the_wrong_length_is_no_bitmap(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    (tmp_path / "file.bits").write_bytes(b"\xff" * 99)
    part = Partial(path, 8192, 4096, bytes(64), 8)
    part.open()
    assert not part.complete
    part.close()


def test_a_table_that_lies_is_found_out_by_the_whole_file(tmp_path: Path, store: Store, random_build: Make) -> None:
    """Each block fits the table, the file does not fit the manifest: the publisher's error, never loaded."""
    build = random_build((10_000,))
    wrong: Any = msgspec.structs.replace(build.manifest.files[0], sha256="0" * 64)
    build.manifest = msgspec.structs.replace(build.manifest, files=(wrong,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    pump(fetcher, build)
    with pytest.raises(CorruptError):
        adopt_all(build.manifest, fetcher.folder, store)
    assert not store.blob("0" * 64).exists()


def blocks_of_all(build: RandomBuild) -> list[Block]:
    """Everything, in the order in which it is broadcast."""
    prefix = bytes.fromhex(build.digest[:16])
    return [
        Block(prefix, file, at // 4096, content[at : at + 4096])
        for file, content in enumerate(build.contents)
        for at in range(0, len(content), 4096)
    ]


def test_a_broadcast_that_is_heard_whole_costs_no_request(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((300_000, 5))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    fetcher.expect_broadcast(0.0)
    for number, block in enumerate(blocks_of_all(build)):
        assert fetcher.tick(number / 10, connected=True) == []
        fetcher.block(block, number / 10, broadcast=True)
    assert fetcher.done
    assert fetcher.progress.asked == 0


def test_what_a_broadcast_left_out_is_asked_for_when_it_is_over(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((300_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    fetcher.expect_broadcast(0.0)
    missed = {3, 40, 41}
    for block in blocks_of_all(build):
        if block.file == 0 or block.index not in missed:
            fetcher.block(block, 1.0, broadcast=True)
    assert fetcher.tick(2.0, connected=True) == []
    fetcher.note(Broadcast(build=build.digest, over=True), 2.0)
    asked = pump(fetcher, build, start=2.0 + fetcher.limits.repair_spread_s)
    assert fetcher.done
    assert set(asked) == {(1, index) for index in missed}


def test_a_broadcast_that_never_comes_is_waited_for_only_so_long(
    tmp_path: Path, store: Store, random_build: Make
) -> None:
    build = random_build((50_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    fetcher.expect_broadcast(0.0)
    assert fetcher.tick(fetcher.limits.listen_s - 0.1, connected=True) == []
    pump(fetcher, build, start=fetcher.limits.listen_s)
    assert fetcher.done


def test_one_that_comes_late_asks_for_the_block_table_at_once(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((300_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    fetcher.expect_broadcast(0.0)
    late = blocks_of_all(build)[20]
    fetcher.block(late, 1.0, broadcast=True)
    (request,) = fetcher.tick(1.0, connected=True)
    assert request.file == 0
    for block in build.answers(request):
        fetcher.block(block, 1.1)
    assert fetcher.tick(1.2, connected=True) == []
    fetcher.block(late, 1.2, broadcast=True)
    assert fetcher.progress.blocks == 2


def test_false_blocks_of_a_broadcast_are_not_kept(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((50_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    for block in blocks_of_all(build):
        if block.file == 0:
            fetcher.block(block, 0.0, broadcast=True)
    real = blocks_of_all(build)[-1]
    for data in (bytes(len(real.data)), real.data + b"x", real.data[:-1]):
        fetcher.block(Block(real.build_prefix, 1, real.index, data), 1.0, broadcast=True)
    fetcher.block(Block(real.build_prefix, 1, 1 << 20, real.data), 1.0, broadcast=True)
    assert fetcher.progress.bad == 4
    assert fetcher.progress.bytes == len(build.contents[0])


def test_a_table_that_is_false_is_fetched_again(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((50_000,))
    fetcher = build.fetcher(tmp_path, store)
    fetcher.open()
    prefix = bytes.fromhex(build.digest[:16])
    fetcher.block(Block(prefix, 0, 0, bytes(len(build.contents[0]))), 0.0, broadcast=True)
    assert fetcher.progress.bad == 1
    pump(fetcher, build, start=fetcher.limits.listen_s)
    assert fetcher.done


def test_a_fetch_that_drips_has_failed(tmp_path: Path, store: Store, random_build: Make) -> None:
    build = random_build((300_000,))
    fetcher = build.fetcher(tmp_path, store, least_bytes_per_s=1000.0, patience_s=60.0)
    fetcher.open()

    def drip() -> None:
        for second in range(200):
            for request in fetcher.tick(float(second), connected=True):
                if second % 20 == 0:
                    fetcher.block(build.answers(request)[0], float(second))

    with pytest.raises(StepError) as caught:
        drip()
    assert caught.value.reason is Reason.FETCH_FAILED
    assert "bytes a second" in caught.value.detail
