"""A device without a network, and a stick: the bundle is the server's own, the device is held to what it is held to online.

Each case of damage is refused with the reason that it has online, and leaves nothing of the build on the disk.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent.core.acceptance import Refusal
from covey_contract.bundle import blob_name, metadata_name, order_name
from covey_contract.lifecycle import State
from covey_contract.manifest import MANIFEST_TYPE
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment, Order
from covey_contract.reasons import Reason
from covey_contract.signing import public_key, seal, seal_bytes
from covey_contract.wire import decode, encode
from covey_hil.testing.agent_world import DIRECTOR, RELEASE, World
from covey_hil.testing.random_builds import RandomBuild
from covey_hil.testing.vouching_here import InProcess
from covey_server.fleet.bundles import SignedOrder, written
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import create_for_development
from covey_server.releases.carried import files_for
from covey_server.releases.catch_up import release_of
from covey_server.releases.ceremony import RootChange, Trustees, director_key
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import Policy
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf

NOW = 1_900_000_000


@dataclass
class Offline:
    """A server's repository and blobs, and a device that reaches neither."""

    folder: Path
    releases: Releases
    blobs: BlobStore
    world: World

    @property
    def device(self) -> Path:
        return self.folder / "device"

    def build(self, seed: int, version: str, **changes: Any) -> RandomBuild:
        build = RandomBuild((200_000, 90), seed=seed, version=version, **changes)
        for content in build.contents:
            with self.blobs.writer(len(content)) as writer:
                writer.write(content)
                writer.commit()
        return build

    def released(self, seed: int, version: str, **changes: Any) -> RandomBuild:
        build = self.build(seed, version, **changes)
        self.releases.release([release_of(build.manifest, build.manifest_bytes)])
        return build

    def bundle(
        self, build: RandomBuild, *, edit: Callable[[Order], Order] = lambda order: order, **changes: Any
    ) -> Path:
        """As the server writes it, with an order that is changed before it is signed, or after."""
        self.world.order(build, **changes)
        assert self.world.newest is not None
        payload = encode(edit(decode(Order, self.world.newest)))
        self.world.newest = None  # the network brings nothing
        order = SignedOrder("d1", "m", build.digest, payload)
        files = [entry.sha256 for entry in build.manifest.wire_files()]
        path = self.folder / f"{self.world.order_id}.bundle"
        with path.open("wb") as file:
            for piece in written([order], files_for(self.releases, ["m"]), files, self.blobs):
                file.write(piece)
        return path

    def install(self, path: Path) -> Refusal | None:
        with zipfile.ZipFile(path) as archive:
            payload = archive.read(order_name("d1", "m"))
        return self.world.deployments.install(payload, path)

    def until(self, there: Callable[[], bool]) -> None:
        """Blocks come from a thread, which the world's rounds do not wait for."""
        self.world.run(lambda: there() or threading.Event().wait(0.003), rounds=1000)

    def serve(self, build: RandomBuild) -> Path:
        path = self.bundle(build)
        assert self.install(path) is None
        self.until(lambda: self.world.is_settled(build))
        return path

    def nothing_of(self, build: RandomBuild) -> bool:
        names = {build.digest, *(entry.sha256 for entry in build.manifest.wire_files())}
        found = {part for path in self.device.rglob("*") for part in path.relative_to(self.device).parts}
        return not names & found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    (tmp_path / "device").mkdir()
    nowhere = InProcess(tmp_path / "device" / "tuf", tmp_path / "root.json", tmp_path / "ca.pem", "http://127.0.0.1:9")
    world = World(tmp_path / "device", nowhere)
    world.connected = False
    world.now = float(NOW)
    releases = Releases(Shelf(tmp_path / "tuf"), Keyring.load(tmp_path / "keys"), Policy(), world.clock)
    create_for_development(releases, SigningKeys(RELEASE, DIRECTOR))
    (tmp_path / "root.json").write_bytes(releases.root_bytes())
    made = Offline(tmp_path, releases, BlobStore(tmp_path / "blobs"), world)

    class Clock(datetime):
        """The update client, run in this process, reads the world's clock."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(world.now, tz or UTC)

    monkeypatch.setattr("covey_agent.tuf.cli.datetime", Clock)
    return made


def test_a_bundle_is_installed_without_a_network_and_told(offline: Offline) -> None:
    first = offline.released(1, "1")
    offline.serve(first)
    second = offline.released(2, "2")
    offline.world.reports.clear()
    offline.serve(second)
    told = [report.state for report in offline.world.reports if report.progress is None]
    assert told == [
        State.ASSIGNED,
        State.FETCHING,
        State.VERIFYING,
        State.STAGED,
        State.WARMING,
        State.PROBATION,
        State.ACTIVE,
    ]
    assert offline.world.record.release_floor == 2
    assert (offline.world.record.active, offline.world.record.previous) == (second.digest, first.digest)


def test_an_installed_bundle_again_changes_nothing(offline: Offline) -> None:
    path = offline.serve(offline.released(1, "1"))
    offline.world.reports.clear()
    assert offline.install(path) is None
    offline.world.round()
    assert offline.world.reports == []


def bad_director(order: Order) -> Order:
    assignment = decode(Assignment, order.assignment.payload)
    thief = Ed25519PrivateKey.generate()
    return msgspec.structs.replace(order, assignment=seal(assignment, ASSIGNMENT_TYPE, [thief]))


def bad_release_key(order: Order) -> Order:
    payload = order.manifest.payload
    thief = Ed25519PrivateKey.generate()
    return msgspec.structs.replace(order, manifest=seal_bytes(payload, MANIFEST_TYPE, [thief]))


def other_manifest(order: Order) -> Order:
    other = RandomBuild((10,), seed=99, version="1")
    return msgspec.structs.replace(order, manifest=seal_bytes(other.manifest_bytes, MANIFEST_TYPE, [RELEASE]))


@pytest.mark.parametrize(
    ("edit", "changes", "reason"),
    [
        (bad_director, {}, Reason.BAD_SIGNATURE),
        (bad_release_key, {}, Reason.BAD_SIGNATURE),
        (other_manifest, {}, Reason.WRONG_MANIFEST),
        (None, {"device": "another"}, Reason.WRONG_DEVICE),
        (None, {"counter": 1}, Reason.OLD_COUNTER),
        (None, {"expires_ms": NOW * 1000 - 1}, Reason.EXPIRED),
    ],
)
def test_an_order_that_is_not_to_be_followed_writes_nothing(
    offline: Offline, edit: Callable[[Order], Order] | None, changes: dict[str, Any], reason: Reason
) -> None:
    first = offline.released(1, "1")
    offline.serve(first)
    offline.world.now += 120  # a question for keys was not asked just now
    if "expires_ms" in changes:
        changes = {"expires_ms": int(offline.world.now * 1000) - 1}
    second = offline.released(2, "2")
    path = offline.bundle(second, edit=edit or (lambda order: order), **changes)
    before, counter = sorted((offline.device / "orders").iterdir()), offline.world.book.state.counter
    refusal = offline.install(path)
    for _ in range(5):
        offline.world.round()
    told = offline.world.reports[-1]
    assert (told.state, told.reason, told.build) == (State.REFUSED, reason, second.digest)
    assert refusal is None or refusal.reason is reason
    assert sorted((offline.device / "orders").iterdir()) == before
    assert offline.nothing_of(second)
    assert offline.world.serving_build == first.digest
    assert offline.world.book.state.counter == counter  # a good order with bad company can come again


def test_what_nobody_released_is_refused(offline: Offline) -> None:
    offline.serve(offline.released(1, "1"))
    second = offline.build(2, "2")
    path = offline.bundle(second)
    assert offline.install(path) is None
    offline.until(lambda: offline.world.is_in(State.REFUSED))
    assert offline.world.reports[-1].reason is Reason.NOT_RELEASED
    assert offline.nothing_of(second)


def test_wrong_hardware(offline: Offline) -> None:
    build = offline.released(1, "1", architecture="aarch64")
    assert offline.install(offline.bundle(build)) is None
    offline.until(lambda: offline.world.is_in(State.REFUSED))
    assert offline.world.reports[-1].reason is Reason.WRONG_HARDWARE
    assert offline.nothing_of(build)


def test_a_stick_that_was_carried_for_too_long_is_refused_and_a_fresh_one_mends_it(offline: Offline) -> None:
    build = offline.released(1, "1")
    stale = offline.bundle(build)
    offline.world.now += timedelta(hours=25).total_seconds()
    assert offline.install(stale) is None
    offline.until(lambda: offline.world.is_in(State.REFUSED))
    assert offline.world.reports[-1].reason is Reason.METADATA_EXPIRED
    assert offline.nothing_of(build)
    offline.releases.renew()
    fresh = offline.folder / "fresh.bundle"
    spoil(stale, fresh, {metadata_name(name): data for name, data in files_for(offline.releases, ["m"]).items()})
    assert offline.install(fresh) is None
    offline.until(lambda: offline.world.is_settled(build))


def test_an_older_repository_than_the_device_has_seen_is_refused(offline: Offline) -> None:
    offline.releases.release([])
    old = files_for(offline.releases, ["m"])
    offline.serve(offline.released(1, "1"))
    second = offline.released(2, "2")
    path = offline.folder / "old.bundle"
    spoil(offline.bundle(second), path, {metadata_name(name): data for name, data in old.items()})
    assert offline.install(path) is None
    offline.until(lambda: offline.world.is_in(State.REFUSED))
    assert offline.world.reports[-1].reason is Reason.METADATA_ROLLBACK


def test_damaged_bytes_are_never_staged(offline: Offline) -> None:
    """One bit of one block: the rest is kept, and comes to its end with another stick."""
    build = offline.released(1, "1")
    path, bad = offline.bundle(build), offline.folder / "bad.bundle"
    name = blob_name(build.manifest.files[0].sha256)
    content = bytearray(build.contents[1])
    content[100_000] ^= 1
    spoil(path, bad, {name: bytes(content)})
    assert offline.install(bad) is None
    offline.until(lambda: offline.world.is_in(State.FAILED))
    assert offline.world.reports[-1].reason is Reason.FETCH_FAILED
    assert not any((offline.device / "builds").iterdir())
    assert offline.install(path) is None
    offline.until(lambda: offline.world.is_settled(build))


def test_a_stick_that_is_taken_out_leaves_the_rest_to_the_network(offline: Offline) -> None:
    build = offline.released(1, "1")
    path, half = offline.bundle(build), offline.folder / "half.bundle"
    spoil(path, half, {blob_name(build.manifest.files[0].sha256): b""})
    assert offline.install(half) is None
    offline.until(lambda: offline.world.is_in(State.FETCHING))
    offline.world.boot()  # and the agent starts again meanwhile: it knows nothing of sticks then
    offline.world.connected = True
    offline.until(lambda: offline.world.is_settled(build))


def test_a_new_key_for_orders_is_learnt_from_the_bundles_root(offline: Offline) -> None:
    offline.serve(offline.released(1, "1"))
    second = offline.released(2, "2")
    director = Ed25519PrivateKey.generate()
    offline.releases.change_root(RootChange(director=Trustees([director_key(public_key(director))])))

    def by_the_new_one(order: Order) -> Order:
        assignment = decode(Assignment, order.assignment.payload)
        return msgspec.structs.replace(order, assignment=seal(assignment, ASSIGNMENT_TYPE, [director]))

    offline.world.now += 120
    assert offline.install(offline.bundle(second, edit=by_the_new_one)) is None
    offline.until(lambda: offline.world.is_settled(second))


def spoil(path: Path, to: Path, changes: dict[str, bytes]) -> None:
    """The bundle with other members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        kept = [name for name in old.namelist() if name not in changes]
        if any(name.startswith("metadata/") for name in changes):
            kept = [name for name in kept if not name.startswith("metadata/")]
        for name in kept:
            new.writestr(name, old.read(name))
        for name, data in changes.items():
            new.writestr(name, data)
