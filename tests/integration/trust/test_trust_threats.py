"""The threats of the design, one test each, named after it: the device refuses, says why, and goes on serving what it had.

The device is the agent's own control logic over real files; its repository is the server's, written by the server's own code and read
by the agent's update client. What the server would be told is in `world.reports`.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent.tuf.relay import Relay
from covey_contract.lifecycle import State
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment, MetadataPart, MetadataRequest, Order
from covey_contract.metadata import pack_metadata, parts_of, unpack_metadata
from covey_contract.reasons import Reason
from covey_contract.signing import public_key, seal
from covey_contract.wire import decode, encode
from covey_hil.testing.agent_world import DIRECTOR, RELEASE, World
from covey_hil.testing.random_builds import RandomBuild
from covey_hil.testing.vouching_here import InProcess
from covey_server.registry.keys import SigningKeys
from covey_server.releases.answers import Answers
from covey_server.releases.bootstrap import create_for_development
from covey_server.releases.catch_up import release_of
from covey_server.releases.ceremony import RootChange, Trustees, director_key
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import Policy
from covey_server.releases.release import Release
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf

NOW = 1_900_000_000


@dataclass
class Fleet:
    """One server's repository and one device that has enrolled with it."""

    folder: Path
    releases: Releases
    world: World

    @property
    def metadata(self) -> Path:
        return self.folder / "tuf" / "metadata"

    def build(self, seed: int, version: str, **changes: Any) -> RandomBuild:
        return RandomBuild((5000, 90), seed=seed, version=version, **changes)

    def release(self, build: RandomBuild) -> RandomBuild:
        self.releases.release([self.of(build)])
        return build

    @staticmethod
    def of(build: RandomBuild) -> Release:
        return release_of(build.manifest, build.manifest_bytes)

    def serve(self, build: RandomBuild) -> None:
        """Order it and see it through probation."""
        self.world.order(build)
        self.world.run(lambda: self.world.is_settled(build))

    def refuses(self, build: RandomBuild, **changes: Any) -> Reason:
        """Order it; the device must refuse, say so, and serve what it served before."""
        before = self.world.serving_build
        self.world.order(build, **changes)
        self.world.run(lambda: self.world.is_in(State.REFUSED) or self.world.is_in(State.FAILED))
        report = self.world.reports[-1]
        assert report.state in (State.REFUSED, State.FAILED)
        assert report.build == build.digest
        assert report.detail
        assert report.bytes_fetched == 0
        assert self.world.serving_build == before
        assert not any((self.folder / "device" / "builds").glob(f"{build.digest}*"))
        return report.reason

    def turned_away(self, payload: bytes) -> Reason | None:
        """Hand the device an order; the reason that it reports for turning it away, None if it reports nothing."""
        known = len(self.world.reports)
        self.world.deployments.order(payload)
        self.world.round()
        told = self.world.reports[known:]
        return told[-1].reason if told else None

    def order(self, build: RandomBuild, director: Ed25519PrivateKey = DIRECTOR, **changes: Any) -> bytes:
        self.world.order(build, **changes)
        assert self.world.newest is not None
        order = decode(Order, self.world.newest)
        assignment = msgspec.json.decode(order.assignment.payload, type=Assignment)
        return encode(msgspec.structs.replace(order, assignment=seal(assignment, ASSIGNMENT_TYPE, [director])))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path)


def make_fleet(folder: Path) -> Fleet:
    device = folder / "device"
    device.mkdir()
    keyring = Keyring.load(folder / "keys")
    world = World(device, InProcess(device / "tuf", folder / "root.json", folder / "ca.pem", f"file://{folder}"))
    world.now = float(NOW)
    releases = Releases(Shelf(folder / "tuf"), keyring, Policy(), world.clock)
    create_for_development(releases, SigningKeys(RELEASE, DIRECTOR))
    (folder / "root.json").write_bytes(releases.root_bytes())
    return Fleet(folder, releases, world)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The update client reads the world's clock, not this machine's."""
    world: Fleet | None = request.getfixturevalue("fleet") if "fleet" in request.fixturenames else None

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            assert world is not None
            return datetime.fromtimestamp(world.world.now, tz or UTC)

    monkeypatch.setattr("covey_agent.tuf.cli.datetime", Clock)


def test_a_released_build_is_installed_and_its_counter_is_the_floor(fleet: Fleet) -> None:
    fleet.serve(fleet.release(fleet.build(1, "1")))
    fleet.serve(fleet.release(fleet.build(2, "2")))
    assert fleet.world.record.release_floor == 2


def test_arbitrary_install(fleet: Fleet) -> None:
    """Signed by the release key and ordered by the director, and yet in no repository: nobody's publisher has released it."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    assert fleet.refuses(fleet.build(2, "2")) is Reason.NOT_RELEASED


def test_key_compromise_of_the_director(fleet: Fleet) -> None:
    """A thief who can sign every order cannot ship unknown bytes: neither under a new name nor under a released one."""
    good = fleet.release(fleet.build(1, "1"))
    fleet.serve(good)
    assert fleet.refuses(fleet.build(66, "evil")) is Reason.NOT_RELEASED
    impostor = fleet.build(67, "1")  # the same model, version and target; other bytes
    assert fleet.refuses(impostor) is Reason.NOT_RELEASED


def test_key_compromise_of_the_release_desk(fleet: Fleet) -> None:
    """The thief has the publisher's key too. Targets' keys, which lie elsewhere, delegate to another: what the thief signs is void."""
    releases = fleet.releases
    fleet.serve(fleet.release(fleet.build(1, "1")))
    thief = Keyring.load(fleet.folder / "keys")
    shutil.copytree(fleet.folder / "keys", fleet.folder / "stolen")
    key = releases.keyring.make("publisher-new")
    document = releases.propose_delegation("m", Trustees([key]))
    releases.sign_here(document)
    releases.accept(document)
    fleet.serve(fleet.release(fleet.build(2, "2")))
    entry, keys = releases.edition().delegation("models~m")
    assert not any(thief.record(keyid) for keyid in entry.keyids)
    evil = releases.edition().role("models~m")
    publisher = thief.named("publisher")
    assert publisher is not None
    evil.signed.version += 1
    evil.sign(thief.signer(publisher))
    (fleet.metadata / f"{evil.signed.version}.models~m.json").write_bytes(evil.to_bytes())
    snapshot = releases.edition().snapshot
    snapshot.signed.meta["models~m.json"].version += 1
    snapshot.signed.version += 1
    entry, keys = releases.edition().delegation("snapshot")
    thief.sign("snapshot", snapshot, entry, keys)
    (fleet.metadata / f"{snapshot.signed.version}.snapshot.json").write_bytes(snapshot.to_bytes())
    timestamp = releases.edition().timestamp
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta.version = snapshot.signed.version
    timestamp.signed.snapshot_meta.length = timestamp.signed.snapshot_meta.hashes = None
    entry, keys = releases.edition().delegation("timestamp")
    thief.sign("timestamp", timestamp, entry, keys)
    (fleet.metadata / "timestamp.json").write_bytes(timestamp.to_bytes())
    assert fleet.refuses(fleet.build(68, "3")) is Reason.METADATA_UNSIGNED


def test_rollback_of_a_release(fleet: Fleet) -> None:
    """An old build, rightly released in its day, is not run again by an order alone; released again it is."""
    first = fleet.release(fleet.build(1, "1"))
    for build in (first, fleet.release(fleet.build(2, "2")), fleet.release(fleet.build(3, "3"))):
        fleet.serve(build)
    assert fleet.refuses(first) is Reason.OLD_RELEASE
    assert fleet.releases.release_again("m", "1") == 4
    fleet.serve(first)
    assert fleet.world.record.release_floor == 4


def test_the_way_back_to_the_build_before_needs_no_new_release(fleet: Fleet) -> None:
    first, second = fleet.release(fleet.build(1, "1")), fleet.release(fleet.build(2, "2"))
    fleet.serve(first)
    fleet.serve(second)
    assert fleet.world.record.previous == first.digest
    fleet.serve(first)
    assert fleet.world.record.release_floor == 2


def test_the_release_floor_survives_a_restart(fleet: Fleet) -> None:
    first = fleet.release(fleet.build(1, "1"))
    for build in (first, fleet.release(fleet.build(2, "2")), fleet.release(fleet.build(3, "3"))):
        fleet.serve(build)
    fleet.world.boot()
    assert fleet.refuses(first) is Reason.OLD_RELEASE


def _saved(fleet: Fleet) -> Path:
    place = fleet.folder / "saved"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(fleet.metadata, place)
    return place


def _restore(fleet: Fleet, saved: Path, *names: str) -> None:
    for path in [saved / name for name in names] or list(saved.iterdir()):
        shutil.copy(path, fleet.metadata / path.name)


def test_rollback_of_the_repository(fleet: Fleet) -> None:
    """Yesterday's timestamp, rightly signed, is not taken after today's."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    saved = _saved(fleet)
    second = fleet.release(fleet.build(2, "2"))
    fleet.serve(second)
    _restore(fleet, saved, "timestamp.json")
    assert fleet.refuses(fleet.build(3, "3")) is Reason.METADATA_ROLLBACK


def test_freeze(fleet: Fleet) -> None:
    """Whoever keeps the newest metadata from the device can do so only until the last expires."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    fleet.world.now += timedelta(hours=25).total_seconds()
    assert fleet.refuses(fleet.build(2, "2")) is Reason.METADATA_EXPIRED
    fleet.releases.renew()
    fleet.serve(fleet.release(fleet.build(2, "2")))


def test_mix_and_match(fleet: Fleet) -> None:
    """A snapshot of one day under the timestamp of another."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    version = fleet.releases.edition().snapshot.signed.version
    fleet.release(fleet.build(2, "2"))
    shutil.copy(fleet.metadata / f"{version}.snapshot.json", fleet.metadata / f"{version + 1}.snapshot.json")
    assert fleet.refuses(fleet.build(2, "2")) in (Reason.METADATA_MISMATCH, Reason.METADATA_TOO_LARGE)


def test_endless_data(fleet: Fleet) -> None:
    """A file that goes on past its signed length, or past its limit, is cut there: not a byte beyond is kept."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    second = fleet.release(fleet.build(2, "2"))
    name = f"{fleet.releases.edition().snapshot.signed.version}.snapshot.json"
    data = (fleet.metadata / name).read_bytes()
    (fleet.metadata / name).write_bytes(data + b" ")
    assert fleet.refuses(second) is Reason.METADATA_TOO_LARGE
    (fleet.metadata / name).write_bytes(data)
    with (fleet.metadata / "timestamp.json").open("ab") as file:
        file.truncate(10_000_000)
    assert fleet.refuses(second) is Reason.METADATA_TOO_LARGE
    assert all(path.stat().st_size < 100_000 for path in (fleet.folder / "device" / "tuf").glob("*.json"))


class _Drip(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.ended.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b" ")
                self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def dripping() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Drip)
    server.daemon_threads = True
    server.ended = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_slow_retrieval(fleet: Fleet, dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then holds the device up for no longer than its patience; then it tries again, later and later."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    second = fleet.release(fleet.build(2, "2"))
    monkeypatch.setattr("covey_agent.tuf.source.Patience.__init__.__defaults__", (0.4, 0.3, 0.2, 500.0))
    good, fleet.world.vouching = fleet.world.vouching, replace(fleet.world.vouching, url=dripping)  # type: ignore[type-var]
    fleet.world.boot()
    assert fleet.refuses(second) is Reason.METADATA_UNAVAILABLE
    fleet.world.vouching = good
    fleet.world.boot()
    fleet.world.run(lambda: fleet.world.is_settled(second))


def test_wrong_device(fleet: Fleet) -> None:
    build = fleet.release(fleet.build(1, "1"))
    assert fleet.turned_away(fleet.order(build, device="another")) is Reason.WRONG_DEVICE
    assert fleet.world.serving_build is None


def test_wrong_hardware(fleet: Fleet) -> None:
    build = fleet.release(fleet.build(1, "1", architecture="aarch64"))
    assert fleet.refuses(build) is Reason.WRONG_HARDWARE


def test_a_release_with_other_fields_than_its_manifest(fleet: Fleet) -> None:
    """The publisher says of the build what the build does not say of itself."""
    build = fleet.build(1, "1")
    odd = fleet.of(build)
    fleet.releases.release([replace(odd, fields={**odd.fields, "precision": "int8"})])
    assert fleet.refuses(build) is Reason.NOT_RELEASED


def test_mqtt_replay(fleet: Fleet) -> None:
    """The same order twice, an old one again, and each of them after a reboot."""
    first, second = fleet.release(fleet.build(1, "1")), fleet.release(fleet.build(2, "2"))
    fleet.serve(first)
    old = fleet.world.newest
    fleet.serve(second)
    assert old is not None
    for _ in range(2):
        assert fleet.turned_away(old) in (Reason.OLD_COUNTER, None)
        assert fleet.world.serving_build == second.digest
        known = fleet.world.newest
        assert known is not None
        assert fleet.turned_away(known) is None  # its own newest order: nothing to do, nothing to say
        fleet.world.boot()
        fleet.world.round()
    assert fleet.world.serving_build == second.digest


def test_clock_at_1971_2040_and_jumping(fleet: Fleet) -> None:
    """In 1971 the signed floor counts; in 2040 everything looks old, and nothing is forgotten once the clock is right again."""
    first = fleet.release(fleet.build(1, "1"))
    fleet.serve(first)
    right = fleet.world.now
    floor = fleet.world.book.state.time_floor_ms
    assert floor >= int(NOW * 1000)
    old = fleet.order(fleet.build(1, "1"), expires_ms=floor - 1)
    fleet.world.now = 31_536_000.0
    assert fleet.turned_away(old) is Reason.EXPIRED
    fleet.world.now = 2_208_988_800.0
    second = fleet.build(2, "2")
    reason = fleet.refuses(second, issued_ms=int(right * 1000), expires_ms=2**52)
    assert reason is Reason.METADATA_EXPIRED
    assert fleet.world.book.state.time_floor_ms < (right + 60) * 1000  # a clock that is ahead is no evidence
    fleet.world.now = right + 60
    fleet.serve(fleet.release(second))


def test_a_new_key_for_orders_is_followed_and_the_old_one_refused(fleet: Fleet) -> None:
    """The director's key was stolen: root names another, and the thief's orders are refused from the next refresh on."""
    first, second = fleet.release(fleet.build(1, "1")), fleet.release(fleet.build(2, "2"))
    fleet.serve(first)
    director = Ed25519PrivateKey.generate()
    stolen = fleet.order(second)
    fleet.releases.change_root(RootChange(director=Trustees([director_key(public_key(director))])))
    payload = fleet.order(second, director)
    fleet.world.newest = payload
    fleet.world.now += 120
    fleet.world.run(lambda: fleet.world.is_settled(second))
    assert fleet.turned_away(stolen) is Reason.BAD_SIGNATURE
    assert fleet.world.serving_build == second.digest


def test_a_device_offline_for_a_year_comes_back(fleet: Fleet) -> None:
    """Every online key was exchanged meanwhile, twice, and its own root has expired; one refresh brings it up to date."""
    fleet.serve(fleet.release(fleet.build(1, "1")))
    for month in range(12):
        fleet.world.now += timedelta(days=31).total_seconds()
        fleet.releases.renew()
        if month in (3, 8):
            changes = {
                role: Trustees([fleet.releases.keyring.make(f"{role}-{month}")]) for role in ("timestamp", "snapshot")
            }
            fleet.releases.change_root(RootChange(changes))
    assert fleet.releases.shelf.newest_root() == 3
    fleet.serve(fleet.release(fleet.build(2, "2")))
    assert fleet.world.record.release_floor == 2


class Broker:
    """Nothing but the broker is open: metadata come as the server packs them, in parts that arrive twice and out of order."""

    def __init__(self, fleet: Fleet) -> None:
        self.asked: list[MetadataRequest] = []
        self.change: Callable[[dict[str, bytes]], dict[str, bytes]] = lambda files: files
        self._answers = Answers(fleet.releases)
        self.relay = Relay(self._ask, wait_s=0.0)
        vouching = fleet.world.vouching
        assert vouching is not None
        vouching.url = "http://127.0.0.1:9"  # nobody answers there
        vouching.relay = self.relay.fetch

    def _ask(self, request: MetadataRequest) -> bool:
        self.asked.append(request)
        files = self.change(unpack_metadata(self._answers.of(request.path, request.root)))
        parts = parts_of(pack_metadata(files))
        messages = [
            MetadataPart(id=request.id, part=number, parts=len(parts), data=data) for number, data in enumerate(parts)
        ]
        for message in [*reversed(messages), *messages]:
            self.relay.take(message)
        return True


def test_root_rotates_over_three_versions_for_a_device_with_the_mqtt_port_alone(fleet: Fleet) -> None:
    fleet.serve(fleet.release(fleet.build(1, "1")))
    for turn in range(3):
        keyring = fleet.releases.keyring
        changes = {role: Trustees([keyring.make(f"{role}-turn-{turn}")]) for role in ("root", "timestamp", "targets")}
        fleet.releases.change_root(RootChange(changes))
    broker = Broker(fleet)
    second = fleet.release(fleet.build(2, "2"))
    fleet.serve(second)
    assert [request.root for request in broker.asked] == [1]
    assert fleet.world.record.release_floor == 2
    fleet.serve(fleet.release(fleet.build(3, "3")))
    assert [request.root for request in broker.asked] == [1, 4]


def test_what_comes_over_mqtt_is_believed_no_more_than_what_comes_by_https(fleet: Fleet) -> None:
    """A thief of the director's key who also sits at the broker: it can leave out, repeat and forge, and nothing runs."""
    first = fleet.release(fleet.build(1, "1"))
    fleet.serve(first)
    broker = Broker(fleet)
    old: dict[str, bytes] = {}
    broker.change = lambda files: old.update(files) or files
    assert fleet.refuses(fleet.build(2, "2")) is Reason.NOT_RELEASED
    second = fleet.release(fleet.build(3, "3"))
    broker.change = lambda files: {name: data.replace(b"1", b"2") for name, data in files.items()}
    assert fleet.refuses(second) in (Reason.METADATA_UNSIGNED, Reason.METADATA_INVALID, Reason.METADATA_MISMATCH)
    broker.change = lambda _files: old
    assert fleet.refuses(second) is Reason.NOT_RELEASED
    broker.change = lambda files: {f"../{name}": data for name, data in files.items()}
    assert fleet.refuses(second) is Reason.METADATA_UNAVAILABLE
    broker.change = lambda files: files
    fleet.serve(second)


def test_a_clock_in_2040_is_put_right_by_the_signed_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the system's clock all metadata have expired; control has the server's signed time, and hands it on to the update client."""
    fleet.serve(fleet.release(fleet.build(1, "1")))

    class In2040(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2040, 1, 1, tzinfo=tz or UTC)

    monkeypatch.setattr("covey_agent.tuf.cli.datetime", In2040)
    second = fleet.release(fleet.build(2, "2"))
    assert fleet.refuses(second) is Reason.METADATA_EXPIRED
    vouching = fleet.world.vouching
    assert vouching is not None
    vouching.time_ms = fleet.world.clock
    fleet.serve(second)
