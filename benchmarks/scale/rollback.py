"""Ten thousand simulated devices through a real broker and a real server, each a process of its own: a campaign to all of them, the
broker killed in the middle of it; then the order to go back, and how long it takes to reach the last of them.

Devices and server share this machine, and so its cores. MQTT is without TLS here: the handshakes of ten thousand simulated devices
would be measured, not the server.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, insert, select

from benchmarks.scale.databases import url_of
from covey_contract.envelope import encode_envelope
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.manifest import DataType, FileEntry, Manifest, Runtime, TensorSpec, build_digest
from covey_contract.wire import encode
from covey_hil.fleet import LocalServer
from covey_hil.processes import Child, command, wait_for
from covey_hil.simulator.fleet import allow_files
from covey_hil.testing.rows import add_build, add_version, report_of
from covey_profiles import load_profiles, match
from covey_server.db.engine import Database
from covey_server.db.tables import Device, Reported, ReportRow
from covey_server.fleet.broker import find_mosquitto
from covey_server.fleet.mosquitto_config import MAX_INFLIGHT_MESSAGES, MAX_QUEUED_MESSAGES
from covey_server.fleet.ports import free_port
from covey_server.fleet.sql import table_of
from covey_server.registry.keys import SigningKeys

MODEL, TARGET = "digits", "onnxruntime-fp32"
STEP_S = 1.0
PATIENCE_S = 240.0
FACTS = Facts(
    architecture="x86_64",
    cpu_model="simulated",
    cpu_cores=4,
    cpu_flags=("avx2",),
    memory_mb=8000,
    storage_free_mb=20_000,
    os="Debian GNU/Linux 12",
    libc="glibc 2.36",
    python="3.11.2",
    runtimes=(RuntimeFact(name="onnxruntime", version="1.31.1", devices=("CPUExecutionProvider",)),),
    simulated=True,
)
CAMPAIGN = """\
name: digits-1.1
model: digits
version: "1.1"
stages:
  - {name: all, percent: 100, soak: 1h}
gates:
  install_failures: {max_rate: 1.0}
on_breach: pause
probation: {seconds: 0}
"""


def measure(kind: str, folder: Path, devices: int) -> dict[str, Any]:
    """`rollback_s`: from the operator's word to the last device having its order to go back; `restored_s`: to the server having
    heard of all that they serve their earlier build; `lost_reports`: of those that devices said, those that are not in the
    database exactly once. `kind` is that of the server's database."""
    with url_of(kind, folder / "database") as url, _site(folder, url, devices) as site:
        connected_s = site.connect()
        rollout_s = site.roll_out()
        reached_s, restored_s = site.roll_back()
        return {
            "devices": devices,
            "connected_s": round(connected_s, 1),
            "rollout_s": round(rollout_s, 1),
            "rollback_s": round(reached_s, 2),
            "restored_s": round(restored_s, 1),
            **site.account(),
        }


@contextmanager
def _site(folder: Path, url: str, devices: int) -> Iterator[_Site]:
    allow_files(devices + 1000)  # broker and simulator inherit it
    site = _Site(folder, url, devices)
    try:
        site.start()
        yield site
    finally:
        site.stop()


class _Site:
    def __init__(self, folder: Path, url: str, devices: int) -> None:
        self._folder, self._url = folder, url
        self._ids = [f"sim-{number:05}" for number in range(devices)]
        self._port = free_port()
        program = find_mosquitto(None)
        if program is None:
            raise FileNotFoundError("mosquitto is not installed: ./dev setup")
        self._broker = Child("broker", [program, "-c", str(folder / "mosquitto.conf")], folder / "mosquitto.log")
        settings = {"broker_url": f"mqtt://127.0.0.1:{self._port}", "database_url": url, "local_worker": "false"}
        self._server = LocalServer(folder / "server", folder / "server.log", port=free_port(), settings=settings)
        self._digests: dict[str, str] = {}
        self._devices: Child | None = None

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._prepare()
        self._write_broker_config()
        self._broker.start()
        self._server.start()
        self._client = self._server.client()

    def stop(self) -> None:
        for child in (self._devices, self._server.child, self._broker):
            if child is not None and child.alive:
                child.stop(60.0)

    def connect(self) -> float:
        """Switch the devices on; seconds until the server has heard what each of them serves."""
        (self._folder / "ids").write_text("\n".join(self._ids))
        (self._folder / "facts.json").write_bytes(msgspec.json.encode(FACTS))
        words = [command("covey-hil"), "simulate", "--broker", f"127.0.0.1:{self._port}"]
        words += ["--devices", str(self._folder / "ids"), "--facts", str(self._folder / "facts.json")]
        words += ["--model", MODEL, "--active", self._digests["1.0"], "--step", str(STEP_S)]
        self._devices = Child("devices", [*words, "--out", str(self._folder)], self._folder / "devices.log")
        began = time.monotonic()
        self._devices.start()
        wait_for("the devices", lambda: self._serving("1.0") == len(self._ids) or None, PATIENCE_S, every_s=0.5)
        return time.monotonic() - began

    def roll_out(self) -> float:
        """The new version to all; the broker dies when half of them have its order. Seconds until the server knows of all."""
        began = time.monotonic()
        self._client.create_campaign(CAMPAIGN.encode())
        half = len(self._ids) // 2
        wait_for("half of the orders", lambda: self._status()["heard"].get(self._digests["1.1"], 0) >= half, PATIENCE_S)
        self._broker.kill()
        self._broker.start()
        wait_for("the new version", lambda: self._serving("1.1") == len(self._ids) or None, PATIENCE_S, every_s=0.5)
        return time.monotonic() - began

    def roll_back(self) -> tuple[float, float]:
        """Seconds from the operator's word to the last device having its order, and to the campaign having been rolled back."""
        self._began_s = time.monotonic()
        self._client.campaign_action("digits-1.1", "rollback")
        state = wait_for("the way back", self._is_back, PATIENCE_S, every_s=0.25)
        restored_s = time.monotonic() - self._began_s
        if state != "rolled_back":
            raise RuntimeError(f"the campaign is {state}: {self._client.campaign('digits-1.1')['waiting_for']}")
        self._stop_devices()
        arrived = []
        for device in self._record:
            back = [heard["at_s"] for heard in device["heard"] if heard["build"] == self._digests["1.0"]]
            if not back:
                raise RuntimeError(f"{device['id']} has no order to go back")
            arrived.append(back[-1])
        return max(arrived) - self._began_s, restored_s

    def account(self) -> dict[str, Any]:
        """What devices said against what the database holds."""
        said = {(device["id"], seq) for device in self._record for seq in device["sent"]}
        database = Database(self._url)
        with database.reading() as session:
            rows = [(device, seq) for device, seq in session.execute(select(ReportRow.device, ReportRow.seq))]
        database.close()
        held = set(rows)
        return {
            "reports": len(said),
            "lost_reports": len(said - held) + len(rows) - len(held),
            "made_up_reports": len(held - said),
            "sessions": sum(device["sessions"] for device in self._record),
            # What its device still holds, and would say again; of these some may be missing in the database.
            "unacknowledged": sum(device["unacknowledged"] for device in self._record),
        }

    def _stop_devices(self) -> None:
        assert self._devices is not None  # noqa: S101 - for the type checker
        self._devices.stop(90.0)
        self._record: list[dict[str, Any]] = json.loads((self._folder / "record.json").read_text())

    def _is_back(self) -> str | None:
        state = str(self._client.campaign("digits-1.1")["state"])
        return state if state not in {"rolling_back", "running"} else None

    def _status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / "status.json").read_text())
        except FileNotFoundError:
            return {"heard": {}, "connected": 0}
        return found

    def _serving(self, version: str) -> int:
        """How many devices the server believes to serve it."""
        for child in (self._server.child, self._devices):
            if child is not None:
                child.check()
        query = select(func.count()).where(Reported.active == self._digests[version])
        with self._looking.reading() as session:
            return session.scalar(query) or 0

    def _write_broker_config(self) -> None:
        lines = [f"listener {self._port} 127.0.0.1", "allow_anonymous true", "persistence true"]
        lines += [f"persistence_location {self._folder}/", "autosave_interval 30"]
        lines += [
            f"max_inflight_messages {MAX_INFLIGHT_MESSAGES}",
            f"max_queued_messages {MAX_QUEUED_MESSAGES}",
            "set_tcp_nodelay true",
            "connection_messages false",
            "user root",
        ]
        (self._folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def _prepare(self) -> None:
        """The devices, as if they had enrolled, and two built versions."""
        database = self._looking = Database(self._url)
        database.migrate()
        keys = SigningKeys.load_or_create(self._folder / "server" / "keys")
        now_ms = time.time_ns() // 1_000_000
        found = match(FACTS, load_profiles())
        plain = msgspec.to_builtins(FACTS)
        rows = [
            {
                "id": device,
                "profile": None if found.profile is None else found.profile.id,
                "profile_reason": found.reason,
                "simulated": True,
                "facts": plain,
                "facts_digest": FACTS.digest(),
                "labels": {},
                "enrolled_ms": now_ms,
            }
            for device in self._ids
        ]
        with database.session() as session:
            session.execute(insert(table_of(Device)), rows)
            for name in ("1.0", "1.1"):
                version = add_version(session, name, now_ms=now_ms)
                manifest = encode(_manifest(name))
                self._digests[name] = build_digest(manifest)
                add_build(
                    session,
                    version,
                    self._digests[name],
                    target=TARGET,
                    manifest=manifest,
                    envelope=encode_envelope(keys.sign_manifest(manifest)),
                    report=report_of(TARGET),
                )


def _manifest(version: str) -> Manifest:
    tensor = TensorSpec(name="x", datatype=DataType.FP32, shape=(1,))
    sha256 = hashlib.sha256(version.encode()).hexdigest()
    return Manifest(
        model=MODEL,
        version=version,
        target=TARGET,
        runtime=Runtime.ONNXRUNTIME,
        precision="fp32",
        entry="model.onnx",
        files=(FileEntry(path="model.onnx", size=1000, sha256=sha256),),
        table=FileEntry(path="blocks.bin", size=32, sha256=sha256),
        inputs=(tensor,),
        outputs=(tensor,),
    )
