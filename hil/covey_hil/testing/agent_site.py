"""A real agent (control, gateway, runners), a real mosquitto with mutual TLS, and a small server that speaks the contract."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from covey_agent.book import read_state
from covey_agent.core.state import AgentState
from covey_agent.errors import GatewayError
from covey_agent.gateway.control_api import GatewayStatus
from covey_agent.gateway_client import GatewayClient
from covey_agent.gateway_process import run_folder
from covey_agent.identity import save_identity
from covey_contract.blocks import blocks_of, encode_block
from covey_contract.enrolment import Broker, EnrolResponse
from covey_contract.envelope import Envelope
from covey_contract.lifecycle import State
from covey_contract.manifest import (
    MANIFEST_TYPE,
    block_count,
)
from covey_contract.messages import (
    ASSIGNMENT_TYPE,
    Ack,
    Action,
    Assignment,
    BlockRequest,
    Broadcast,
    Hello,
    Offer,
    Order,
    Probation,
    Reply,
    Report,
    Telemetry,
)
from covey_contract.signing import Trust, public_key, seal, seal_bytes
from covey_contract.topics import UP_FILTER, Down, Up, broadcast_blocks, broadcast_notes, down, parse_up
from covey_contract.wire import decode, encode
from covey_hil.testing.authority import Authority
from covey_hil.testing.made_builds import MODEL, SIZE, MadeBuild
from covey_hil.testing.waiting import PATIENCE_S, until
from covey_server.fleet.ports import free_port

DEVICE = "press-7"


class Mosquitto:
    """A broker with two listeners: mutual TLS for devices, plain on loopback for the test's server."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.tls_port, self.plain_port = free_port(), free_port()
        key, certificate = authority.issue("localhost")
        (folder / "broker.key").write_bytes(key)
        (folder / "broker.pem").write_text(certificate)
        (folder / "ca.pem").write_text(authority.pem)
        (folder / "mosquitto.conf").write_text(
            f"""per_listener_settings true
user root
listener {self.plain_port} 127.0.0.1
allow_anonymous true
listener {self.tls_port} 127.0.0.1
allow_anonymous false
require_certificate true
use_identity_as_username true
cafile {folder}/ca.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert binary, "mosquitto is not installed"
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([binary, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log)
        until(self._answers, "the broker to listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.plain_port)) == 0


class FleetServer:
    """Signs orders, answers block requests, acknowledges records; notes everything. What it does badly is set by the test."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.release, self.director = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.trust = Trust(release=(public_key(self.release),), director=(public_key(self.director),))
        self.builds: dict[str, MadeBuild] = {}
        self.counter = 0
        self.newest: Assignment | None = None
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.telemetry: list[Telemetry] = []
        self.replies: list[Reply] = []
        self.seqs: Counter[int] = Counter()
        self.sent: Counter[tuple[str, int, int]] = Counter()
        self.acknowledge = True
        self.block_budget: int | None = None  # so many blocks are sent, then none
        self.pause_s = 0.0
        self.offer = Offer()  # that orders bring
        self.spoil: Callable[[int, int, bytes], bytes | None] = lambda _file, _index, data: data
        self.on_report: Callable[[Report], None] = lambda _report: None
        self._client: Client | None = None

    def start(self) -> None:
        client = Client(CallbackAPIVersion.VERSION2, client_id="server", protocol=MQTTProtocolVersion.MQTTv311)
        client.on_message = self._on_message
        client.on_connect = self._on_connect
        client.max_inflight_messages_set(100)
        client.connect("127.0.0.1", self.broker.plain_port)
        client.loop_start()
        until(client.is_connected, "the server to connect")
        self._client = client

    def stop(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def publish(self, what: Down, payload: bytes, device: str = DEVICE) -> None:
        assert self._client is not None
        self._client.publish(down(device, what), payload, qos=0 if what is Down.BLOCK else 1)

    def assignment(self, build: MadeBuild, **changes: Any) -> Assignment:
        self.counter += 1
        now = time.time_ns() // 1_000_000
        fields: dict[str, Any] = {
            "id": f"a{self.counter}",
            "device": DEVICE,
            "counter": self.counter,
            "issued_ms": now,
            "expires_ms": now + 3_600_000,
            "model": MODEL,
            "version": build.manifest.version,
            "build": build.digest,
            "probation": Probation(seconds=0.5),
        }
        return Assignment(**{**fields, **changes})

    def order(self, build: MadeBuild, *, send: bool = True, **changes: Any) -> Assignment:
        """Assign the build; the order is signed anew and can be sent again by `send_order`."""
        self.builds[build.digest] = build
        assignment = self.assignment(build, **changes)
        if send:
            self.newest = assignment
            self.send_order(assignment)
        return assignment

    def send_order(self, assignment: Assignment, *, director: Ed25519PrivateKey | None = None) -> None:
        build = self.builds[assignment.build]
        order = Order(
            assignment=seal(assignment, ASSIGNMENT_TYPE, [director or self.director]),
            manifest=self.sealed_manifest(build),
            offer=self.offer,
        )
        self.publish(Down.ASSIGNMENT, encode(order))

    def broadcast(self, build: MadeBuild, *, leave_out: Collection[tuple[int, int]] = ()) -> None:
        """Every block to all who listen but some, (file, index), and that it is over."""
        assert self._client is not None
        size = build.manifest.block_size
        for file, content in enumerate(build.contents):
            for index in range(block_count(len(content), size)):
                if (file, index) not in leave_out:
                    frame = encode_block(build.digest, file, index, content[index * size : (index + 1) * size])
                    self._client.publish(broadcast_blocks(build.digest), frame, qos=1)
        self._client.publish(
            broadcast_notes(build.digest), encode(Broadcast(build=build.digest, over=True)), qos=1
        ).wait_for_publish(PATIENCE_S)

    def sealed_manifest(self, build: MadeBuild) -> Envelope:
        return seal_bytes(build.manifest_bytes, MANIFEST_TYPE, [self.release])

    def remove(self, build: MadeBuild) -> Assignment:
        return self.order(build, action=Action.REMOVE)

    def states(self, assignment: Assignment) -> list[State]:
        """Of one order, without progress, in the order of their numbers."""
        told = {r.seq: r.state for r in self.reports if r.assignment == assignment.id and r.progress is None}
        return [state for _, state in sorted(told.items())]

    def last(self, assignment: Assignment) -> Report | None:
        mine = [report for report in self.reports if report.assignment == assignment.id]
        return max(mine, key=lambda report: report.seq, default=None)

    def reached(self, assignment: Assignment, state: State, seconds: float = PATIENCE_S) -> Report:
        def there() -> Report | None:
            last = self.last(assignment)
            return last if last is not None and last.state is state else None

        try:
            report = until(there, f"{assignment.id} to be {state}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it was {self.states(assignment)}, last {self.last(assignment)}") from None
        assert isinstance(report, Report)
        return report

    def _on_connect(self, client: Client, *_: object) -> None:
        client.subscribe(UP_FILTER, qos=1)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        device, what = parse_up(message.topic)
        if what is Up.BLOCK_REQUEST:
            self._send_blocks(device, decode(BlockRequest, message.payload))
        elif what is Up.HELLO:
            hello = decode(Hello, message.payload)
            self.hellos.append(hello)
            if self.newest is not None and hello.last_counter < self.newest.counter:
                self.send_order(self.newest)
        elif what is Up.REPLY:
            self.replies.append(decode(Reply, message.payload))
        elif what in (Up.REPORT, Up.TELEMETRY):
            self._note(
                device, decode(Report, message.payload) if what is Up.REPORT else decode(Telemetry, message.payload)
            )

    def _note(self, device: str, record: Report | Telemetry) -> None:
        self.seqs[record.seq] += 1
        new = self.seqs[record.seq] == 1
        if isinstance(record, Telemetry):
            if new:
                self.telemetry.append(record)
        elif new:
            self.reports.append(record)
        if self.acknowledge:
            self.publish(Down.ACK, encode(Ack(seqs=(record.seq,))), device)
        if isinstance(record, Report):
            self.on_report(record)

    def _send_blocks(self, device: str, request: BlockRequest) -> None:
        build = self.builds[request.build]
        content = build.contents[request.file]
        for index in blocks_of(request.base, request.bitmap):
            if self.block_budget is not None:
                if self.block_budget <= 0:
                    return
                self.block_budget -= 1
            data: bytes | None = content[index * build.manifest.block_size :][: build.manifest.block_size]
            assert data, f"block {index} of file {request.file} does not exist"
            data = self.spoil(request.file, index, data)
            if data is None:
                continue
            self.sent[request.build, request.file, index] += 1
            if self.pause_s:
                threading.Event().wait(self.pause_s)
            self.publish(Down.BLOCK, encode_block(request.build, request.file, index, data), device)


# --- the device -------------------------------------------------------------------------------------------------------


class Device:
    """An agent's state folder, and its control process."""

    def __init__(self, state: Path, broker: Mosquitto, trust: Trust, authority: Authority) -> None:
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self.output = state.parent / "agent.out"
        state.mkdir(mode=0o700)
        key, certificate = authority.issue(DEVICE)
        response = EnrolResponse(
            device=DEVICE,
            certificate_pem=certificate,
            ca_pem=authority.pem,
            broker=Broker(host="localhost", port=broker.tls_port),
            trust=trust,
        )
        save_identity(state / "identity", "http://127.0.0.1:1", key, response, None)

    def start(self, *options: str, limit_file_bytes: int | None = None) -> None:
        command = [sys.executable, "-m", "covey_agent", "run", "--state", str(self.state), "--inference-port", "0"]
        command += ["--telemetry-interval", "0.5", "--silence", "0.5", "--retry", "0.5", "--margin-mb", "1", *options]
        if limit_file_bytes is not None:
            command = ["prlimit", f"--fsize={limit_file_bytes}:", *command]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @property
    def book(self) -> AgentState:
        return read_state(self.state)

    @property
    def gateway(self) -> GatewayStatus | None:
        try:
            return GatewayClient(run_folder(self.state) / "gateway.sock").status()
        except GatewayError:
            return None

    @property
    def serving(self) -> str | None:
        status = self.gateway
        return next((slots.active for slots in status.models if slots.model == MODEL), None) if status else None

    def kill_gateway(self) -> None:
        status = self.gateway
        assert status is not None
        gateway = psutil.Process(status.pid)
        runners = gateway.children(recursive=True)
        gateway.kill()
        for runner in runners:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end with its gateway
                runner.kill()

    def log(self) -> str:
        return self.output.read_text()

    def end(self) -> None:
        """Whatever still runs here."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        if self.gateway is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may just be ending by itself
                self.kill_gateway()

    def infer(self, value: float) -> float:
        """The model's answer for one number, by the command line."""
        request = self.output.with_name("request.json")
        tensor = {"name": "x", "shape": [1, SIZE], "datatype": "FP32", "data": [value] * SIZE}
        request.write_text(json.dumps({"inputs": [tensor]}))
        done = self.command("infer", MODEL, str(request))
        assert done.returncode == 0, done.stderr
        answer: float = json.loads(done.stdout)["outputs"][0]["data"][0]
        return answer

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "covey_agent", name, "--state", str(self.state), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@dataclass
class Site:
    """All of it together."""

    server: FleetServer
    device: Device
    broker: Mosquitto
    authority: Authority


@contextmanager
def opened(folder: Path, authority: Authority) -> Iterator[Site]:
    """A real broker, a small server, and a device that is not started yet; all ended afterwards."""
    broker = Mosquitto(folder, authority)
    broker.start()
    server = FleetServer(broker)
    server.start()
    device = Device(folder / "state", broker, server.trust, authority)
    try:
        yield Site(server, device, broker, authority)
    finally:
        device.end()
        server.stop()
        broker.stop()
