"""A fleet service on real parts (SQLite, mosquitto on a free port, blob store) and a small device that speaks the contract."""

from __future__ import annotations

import hashlib
import itertools
import queue
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import select

from covey_contract import topics
from covey_contract.blocks import Block, bitmap_of, decode_block
from covey_contract.enrolment import EnrolRequest, EnrolResponse, parse_claim_token
from covey_contract.envelope import encode_envelope
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.lifecycle import State
from covey_contract.manifest import (
    BLOCK_BYTES,
    MANIFEST_TYPE,
    FileEntry,
    Manifest,
    block_count,
    build_digest,
)
from covey_contract.messages import (
    ASSIGNMENT_TYPE,
    COMMAND_TYPE,
    Ack,
    Assignment,
    BlockRequest,
    BuildWindow,
    Command,
    CommandKind,
    Hello,
    ModelStatus,
    Order,
    Reply,
    Report,
    Status,
    Telemetry,
)
from covey_contract.reasons import Reason
from covey_contract.signing import open_envelope, verify
from covey_contract.wire import Message, decode, encode
from covey_hil.testing.manifests import made_manifest
from covey_hil.testing.postgresql import new_database
from covey_hil.testing.rows import add_build, add_version
from covey_server.bus import Bus
from covey_server.clock import system_clock
from covey_server.db.engine import Database
from covey_server.db.tables import Blob, Version
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.fleet.broker import MosquittoBroker
from covey_server.fleet.ca import FleetCA
from covey_server.fleet.enrolment import new_claim_token
from covey_server.fleet.service import FleetService
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import create_for_development
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import Policy
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf
from covey_server.settings import Settings


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` gives once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {condition}")


class FileReader:
    """Bytes as the blob store wants them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        part, self._data = self._data[:size], self._data[size:]
        return part


class World:
    """A server's fleet side on one data folder; may be stopped and started again as another process would be."""

    until = staticmethod(until)

    def __init__(self, data: Path, *, releases: bool = False, **settings: Any) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(data=data, fleet_tick_s=0.2, **settings)
        self.database = Database(self.settings.database)
        self.database.migrate()
        self.blobs = BlobStore(data / "blobs")
        self.keys = SigningKeys.load_or_create(data / "keys")
        self.ca = FleetCA.load_or_create(data / "ca", system_clock())
        self.bus = Bus()
        self.releases: Releases | None = None
        if releases:
            keyring = Keyring.load(data / "release-keys")
            self.releases = Releases(Shelf(data / "releases"), keyring, Policy(), system_clock)
            create_for_development(self.releases, self.keys)
        self.fleet = FleetService(
            self.settings,
            self.database,
            system_clock,
            self.bus,
            self.keys,
            self.blobs,
            self.ca,
            lambda facts: (f"generic-{facts.architecture}", "because the test says so"),
            self.releases,
        )

    def start(self) -> None:
        self.fleet.start()

    def stop(self) -> None:
        self.fleet.stop()
        self.database.close()

    @property
    def broker_pid(self) -> int:
        assert isinstance(self.fleet.broker, MosquittoBroker)
        return until(lambda: isinstance(self.fleet.broker, MosquittoBroker) and self.fleet.broker.pid)  # type: ignore[no-any-return]

    def token(self, device: str | None = None, **more: Any) -> str:
        with self.database.session() as session:
            given = {"labels": {}, "groups": [], "ttl_s": 60, **more}
            return new_claim_token(
                session, self.ca, device=device, created_by="test", now_ms=system_clock(), **given
            ).token

    def new_device(self, name: str, **facts: Any) -> Device:
        """Not enrolled yet."""
        return Device(name, self.settings.data.parent / f"device-{name}", **facts)

    def device(self, name: str, **facts: Any) -> Device:
        device = self.new_device(name, **facts)
        device.enrol(self.token(name), self.fleet)
        return device

    def build(
        self,
        target: str = "onnxruntime-fp32",
        size: int = 300_000,
        version: str = "1.0",
        content: bytes | None = None,
    ) -> tuple[int, int, str]:
        """A signed build of `digits` in the store: (version id, build id, digest)."""
        now = system_clock()
        data = content or secrets.token_bytes(size)
        size = len(data)
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
        table = b"".join(hashlib.sha256(block).digest() for block in blocks)
        entries = []
        with self.database.session() as session:
            for path, content in (("model.onnx", data), ("blocks.bin", table)):
                sha256, length = self.blobs.put(FileReader(content), 1 << 30)
                entries.append(FileEntry(path=path, size=length, sha256=sha256))
                session.merge(Blob(sha256=sha256, size=length, created_ms=now))
            file, digests = entries
            manifest = encode(
                made_manifest(model="digits", version=version, target=target, files=(file,), table=digests)
            )
            row = session.scalar(select(Version).where(Version.model == "digits", Version.name == version))
            if row is None:
                row = add_version(session, version, now_ms=now, source_blob=file.sha256)
            signed = encode_envelope(self.keys.sign_manifest(manifest))
            more = {"size": size, "manifest": manifest, "envelope": signed, "created_ms": now}
            build = add_build(session, row, build_digest(manifest), target=target, **more)
            return row.id, build.id, build_digest(manifest)

    def order(self, device: str, build: tuple[int, int, str], **more: Any) -> str:
        version_id, build_id, _ = build
        with self.database.session() as session:
            order = NewOrder(device, "digits", version_id, build_id, "manual", **more)
            assignment = issue(session, [order], system_clock())[0]
        self.fleet.wake()
        return assignment

    def row(self, table: type[Any], *key: Any) -> Any:
        with self.database.reading() as session:
            return session.get(table, key if len(key) > 1 else key[0])

    def rows(self, query: Any) -> list[Any]:
        with self.database.reading() as session:
            return list(session.scalars(query))


class Device:
    """A device as far as the server can tell: it verifies, fetches, reports and forgets what is acknowledged."""

    def __init__(self, name: str, folder: Path, **facts: Any) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.folder = folder
        self.boot_id = secrets.token_hex(4)
        runtime = RuntimeFact(name="onnxruntime", version="1.20")
        self.facts = Facts(**{"architecture": "x86_64", "runtimes": (runtime,), "simulated": True, **facts})
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.identity: EnrolResponse | None = None
        self.client: mqtt.Client | None = None
        self.inbox: defaultdict[str, queue.Queue[bytes]] = defaultdict(queue.Queue)
        self.seq = itertools.count(1)
        self.unacknowledged: dict[int, tuple[topics.Up, Message]] = {}
        self.counter = 0
        self.accepted: str | None = None  # the newest order
        self.models: tuple[ModelStatus, ...] = ()
        self.connected = threading.Event()
        self.answer_commands = True
        self.repeated = time.monotonic()

    def request(self, secret: str, device: str | None = None) -> EnrolRequest:
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "covey-server")]))
            .sign(self.key, hashes.SHA256())
        )
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        return EnrolRequest(secret=secret, csr_pem=pem, facts=self.facts, device=device)

    def enrol(self, token: str, fleet: FleetService) -> None:
        self.adopt(fleet.enrol(self.request(parse_claim_token(token).secret), "test"))

    def adopt(self, identity: EnrolResponse) -> None:
        self.identity = identity
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "key.pem").write_bytes(key)
        (self.folder / "cert.pem").write_text(identity.certificate_pem)
        (self.folder / "ca.pem").write_text(identity.ca_pem)

    def connect(self, *, hello: bool = True, wait: bool = True) -> None:
        assert self.identity is not None
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, clean_session=True)
        broker = self.identity.broker
        if broker.tls:
            ca, certificate, key = (str(self.folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
            client.tls_set(ca, certificate, key)
        else:
            client.username_pw_set(self.name)
        will = encode(Status(boot_id=self.boot_id, online=False))
        client.will_set(topics.up(self.name, topics.Up.STATUS), will, qos=1)
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda c, *_: c.subscribe(topics.down_filter(self.name), 1)

        def subscribed(*_: object) -> None:
            self.connected.set()
            if hello:
                self.hello()
                for what, message in list(self.unacknowledged.values()):
                    self.publish(what, message)

        client.on_subscribe = subscribed
        client.on_disconnect = lambda *_: self.connected.clear()
        client.on_message = self._message
        self.client = client
        client.connect_async(broker.host, broker.port, 10)
        client.loop_start()
        if wait:
            assert self.connected.wait(20)

    def disconnect(self) -> None:
        """As a power cut would: the broker sends the will."""
        if self.client is not None:
            self.client.on_disconnect = None
            self.client.loop_stop()
            sock = self.client.socket()
            if sock is not None:
                sock.close()
            self.client = None
            self.connected.clear()

    def publish(self, what: topics.Up, message: Message, qos: int = 1) -> mqtt.MQTTMessageInfo:
        assert self.client is not None
        return self.client.publish(topics.up(self.name, what), encode(message), qos)

    def settled(self) -> bool:
        """Whether all is acknowledged; what is not is said again after a while, as agents do: a broker that was killed may have
        forgotten that the server listens, and what comes before the server does is heard by nobody."""
        if self.unacknowledged and self.connected.is_set() and time.monotonic() - self.repeated > 2.0:
            self.repeated = time.monotonic()
            for what, message in list(self.unacknowledged.values()):
                self.publish(what, message)
        return not self.unacknowledged

    def hello(self) -> None:
        self.publish(
            topics.Up.HELLO,
            Hello(
                boot_id=self.boot_id,
                agent_version="0.1.0",
                facts_digest=self.facts.digest(),
                time_ms=system_clock(),
                last_counter=self.counter,
                models=self.models,
                simulated=True,
            ),
        )

    def accept(self, seconds: float = 30.0) -> tuple[Assignment, Manifest]:
        """The next order, verified as an agent does; one that is said again, as the server may, is no other."""
        assert self.identity is not None
        trust = self.identity.trust
        while True:
            order = decode(Order, self.inbox["assignment"].get(timeout=seconds))
            assignment = open_envelope(Assignment, order.assignment, ASSIGNMENT_TYPE, trust.director)
            if (assignment.id, assignment.counter) != (self.accepted, self.counter):
                break
        manifest_bytes = verify(order.manifest, MANIFEST_TYPE, trust.release)
        assert build_digest(manifest_bytes) == assignment.build
        assert assignment.device == self.name
        assert assignment.counter > self.counter
        self.counter = assignment.counter
        self.accepted = assignment.id
        self._hold(assignment, State.ASSIGNED)
        return assignment, decode(Manifest, manifest_bytes)

    def fetch(self, build: str, manifest: Manifest) -> list[bytes]:
        """All files by index on the wire, asked for again after a little silence."""
        files = []
        for index, entry in enumerate(manifest.wire_files()):
            missing = set(range(block_count(entry.size, manifest.block_size)))
            got: dict[int, bytes] = {}
            while missing:
                base = min(missing)
                wanted = sorted(block for block in missing if block < base + 16)
                self.publish(
                    topics.Up.BLOCK_REQUEST,
                    BlockRequest(build=build, file=index, base=base, bitmap=bitmap_of(base, wanted)),
                )
                for block in self._blocks():
                    if block.build_prefix.hex() == build[:16] and block.file == index and block.index in missing:
                        missing.discard(block.index)
                        got[block.index] = block.data
                    if not missing & set(wanted):
                        break
            files.append(b"".join(got[block] for block in sorted(got)))
            assert hashlib.sha256(files[-1]).hexdigest() == entry.sha256
        return files

    def _blocks(self) -> Iterator[Block]:
        while True:
            try:
                yield decode_block(self.inbox["blk"].get(timeout=1.0))
            except queue.Empty:
                return

    def report(self, assignment: Assignment, state: State, reason: Reason = Reason.NONE, **more: Any) -> Report:
        report = Report(
            seq=next(self.seq),
            time_ms=system_clock(),
            assignment=assignment.id,
            counter=assignment.counter,
            model=assignment.model,
            version=assignment.version,
            build=assignment.build,
            state=state,
            reason=reason,
            **more,
        )
        self._hold(assignment, state)
        self.unacknowledged[report.seq] = (topics.Up.REPORT, report)
        if self.client is not None:
            self.publish(topics.Up.REPORT, report)
        return report

    def _hold(self, assignment: Assignment, state: State) -> None:
        self.models = (
            ModelStatus(
                model=assignment.model,
                active=assignment.build if state is State.ACTIVE else None,
                assignment=assignment.id,
                counter=assignment.counter,
                state=state,
            ),
        )

    def measure(self, build: str, ok: int = 10) -> Telemetry:
        now = system_clock()
        window = BuildWindow(model="digits", version="1.0", build=build, ok=ok)
        record = Telemetry(seq=next(self.seq), boot_id=self.boot_id, start_ms=now - 1, end_ms=now, windows=(window,))
        self.unacknowledged[record.seq] = (topics.Up.TELEMETRY, record)
        if self.client is not None:
            self.publish(topics.Up.TELEMETRY, record)
        return record

    def _message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        what = message.topic.split("/")[3]
        if what == "ack":
            for seq in decode(Ack, bytes(message.payload)).seqs:
                self.unacknowledged.pop(seq, None)
        elif what == "command" and self.answer_commands:
            self._answer(bytes(message.payload))
        else:
            self.inbox[what].put(bytes(message.payload))

    def _answer(self, payload: bytes) -> None:
        assert self.identity is not None
        from covey_contract.envelope import decode_envelope

        command = open_envelope(Command, decode_envelope(payload), COMMAND_TYPE, self.identity.trust.director)
        facts = self.facts if command.kind is CommandKind.FACTS else None
        self.publish(topics.Up.REPLY, Reply(id=command.id, time_ms=system_clock(), text="pong", facts=facts))


@pytest.fixture
def in_database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that name the server's database; SQLite in the data folder where a test asks for nothing else."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return {}
    return {"database_url": new_database(request.getfixturevalue("postgresql"))}


@pytest.fixture
def make_world(tmp_path: Path, in_database: dict[str, str]) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(tmp_path / "data", **{**in_database, **settings}))
        return worlds[-1]

    yield make
    for world in worlds:
        world.stop()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.start()
    return made


@pytest.fixture
def device(world: World) -> Iterator[Device]:
    made = world.device("press-7")
    made.connect()
    yield made
    made.disconnect()


@pytest.fixture(scope="session")
def world_class() -> type[World]:
    return World
