"""Campaigns on a real database, through the service's own looks, with devices that speak real messages into the real store.

Only the devices and the clock are simulated: each `SimDevice` follows the newest order that counts for it, reports as an agent
does, and serves fifty requests a second, whose latency depends on the version it runs.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from covey_contract.building import BuildReport, Outcome
from covey_contract.facts import Facts, RuntimeFact
from covey_contract.histogram import Histogram, Recorder
from covey_contract.lifecycle import State
from covey_contract.messages import BuildWindow, Report, Status, Telemetry
from covey_contract.reasons import Reason
from covey_profiles import load_profiles, match
from covey_server.audit import Actor
from covey_server.bus import Bus
from covey_server.campaigns import commands, views
from covey_server.campaigns.service import CampaignService
from covey_server.core.engine import Action
from covey_server.core.spec import read_spec
from covey_server.db.engine import Database
from covey_server.db.tables import (
    AssignmentRow,
    AuditEntry,
    Blob,
    Build,
    CampaignDevice,
    Desired,
    Device,
    Group,
    GroupMember,
    Model,
    Reported,
    Version,
)
from covey_server.errors import Conflict, Invalid
from covey_server.fleet.assignments import NewOrder, action_of, issue
from covey_server.fleet.inbox import Incoming, UpMessage
from covey_server.fleet.records import store
from sqlalchemy import select, update

ANN = Actor("ann", "operator", "test")
START_MS = 1_800_000_000_000
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
    runtimes=(
        RuntimeFact(name="onnxruntime", version="1.31.1", devices=("CPUExecutionProvider",)),
        RuntimeFact(name="openvino", version="2026.4.1", devices=("CPU",)),
        RuntimeFact(name="tflite", version="2.3.0"),
    ),
    simulated=True,
)
FILE = """\
name: digits-{version}
model: digits
version: "{version}"
stages:
  - {{name: canary, group: canary, soak: 5s}}
  - {{name: line-a, group: line-a, soak: 3s}}
  - {{name: rest, percent: 100}}
min_reached: 0.5
settle: 2s
gates:
  install_failures: {{max_rate: 0.1, max_count: 1}}
  errors: {{max_rate: 0.01, min_requests: 50}}
  latency: {{quantile: 0.99, max_ratio: 1.5, min_increase_ms: 2, min_requests: 100}}
on_breach: {on_breach}
"""


@dataclass
class SimDevice:
    """An agent, as the server sees one. Its clock is `skew_ms` off."""

    id: str
    skew_ms: int = 0
    on: bool = True
    counter: int = 0
    active: str | None = None
    previous: str | None = None
    seq: int = 0
    refuses: set[str] = field(default_factory=set)  # versions that it cannot load


class Rig:
    """A server's database and campaign service, a fleet, and one clock for both."""

    def __init__(self, database: Database) -> None:
        self.database, self.now_ms = database, START_MS
        self.devices: dict[str, SimDevice] = {}
        self.latency_ms = {"1.0": 4.0, "1.1": 4.2, "1.2": 40.0}
        self.failing: dict[str, float] = {}  # version -> share of requests that the previous build had to answer
        self.versions: dict[str, str] = {}  # build digest -> version
        self.sent: list[tuple[int, str, str, str]] = []  # (time, device, version, kind) as devices got them
        self._random = random.Random(1)
        self.restart()

    def restart(self) -> None:
        """A new server process on the same database: nothing else survives."""
        self.service = CampaignService(self.database, lambda: self.now_ms, Bus(), lambda: None)

    # --- setting up -----------------------------------------------------------------------------------------------

    def add_version(self, name: str, targets: tuple[str, ...] = ("onnxruntime-fp32",)) -> None:
        with self.database.session() as session:
            if session.get(Model, "digits") is None:
                session.add(Model(name="digits", description="", created_ms=self.now_ms))
                session.add(Blob(sha256="0" * 64, size=1, created_ms=self.now_ms))
                session.flush()
            version = Version(
                model="digits",
                name=name,
                source_blob="0" * 64,
                source_filename="digits.onnx",
                budget=0.01,
                info={},
                created_ms=self.now_ms,
                created_by="ann",
            )
            session.add(version)
            session.flush()
            for target in targets:
                digest = hashlib.sha256(f"{name} {target}".encode()).hexdigest()
                self.versions[digest] = name
                report = BuildReport(target=target, outcome=Outcome.BUILT, size=1000, source_size=1000)
                session.add(
                    Build(
                        version_id=version.id,
                        target=target,
                        state="built",
                        digest=digest,
                        size=1000,
                        report=msgspec.to_builtins(report),
                        created_ms=self.now_ms,
                    )
                )

    def add_device(self, name: str, *groups: str, skew_ms: int = 0, facts: Facts = FACTS) -> SimDevice:
        found = match(facts, load_profiles())
        with self.database.session() as session:
            session.add(
                Device(
                    id=name,
                    profile=found.profile.id if found.profile else None,
                    profile_reason=found.reason,
                    simulated=True,
                    facts=msgspec.to_builtins(facts),
                    facts_digest=facts.digest(),
                    labels={},
                    enrolled_ms=self.now_ms,
                    online=True,
                    last_seen_ms=self.now_ms,
                )
            )
            session.flush()
            for group in groups:
                if session.get(Group, group) is None:
                    session.add(Group(name=group, description="", created_ms=self.now_ms))
                    session.flush()
                session.add(GroupMember(group=group, device=name))
        self.devices[name] = SimDevice(name, skew_ms)
        return self.devices[name]

    def create(self, version: str, *, start: bool = True, on_breach: str = "rollback", **changes: str) -> str:
        text = FILE.format(version=version, on_breach=on_breach)
        for old, new in changes.items():
            assert CHANGES[old] in text
            text = text.replace(CHANGES[old], new)
        spec, document = read_spec(text)
        with self.database.session() as session:
            commands.create(session, spec, text, 7, document.error, ANN, self.now_ms)
            if start:
                commands.act(session, spec.name, Action.START, ANN, self.now_ms)
        return spec.name

    # --- letting time pass ----------------------------------------------------------------------------------------

    def run(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now_ms += 1000
            with self.database.session() as session:
                batch = [incoming for device in self.devices.values() if device.on for incoming in self._serve(device)]
                store(session, batch, self.now_ms)
            for device in self.devices.values():
                if device.on:
                    self._follow(device)
            self.service.tick()

    def run_until(self, name: str, *states: str, seconds: int = 120) -> views.CampaignView:
        for _ in range(seconds):
            self.run()
            if (view := self.show(name)).state in states:
                return view
        raise AssertionError(f"{name} is {view.state} after {seconds} s: {view.waiting_for}")

    def _serve(self, device: SimDevice) -> Iterator[Incoming]:
        """A second's telemetry of what it runs."""
        if device.active is None:
            return
        version = self.versions[device.active]
        recorder = Recorder()
        for _ in range(50):
            recorder.record(self.latency_ms[version] / 1000 * self._random.lognormvariate(0, 0.1))
        window = BuildWindow(
            model="digits",
            version=version,
            build=device.active,
            ok=50,
            fallbacks=round(50 * self.failing.get(version, 0)),
            compute=Histogram(),
            end_to_end=recorder.snapshot(),
        )
        end_ms = self.now_ms + device.skew_ms
        yield self._said(
            device,
            Telemetry(seq=self._seq(device), boot_id="b", start_ms=end_ms - 1000, end_ms=end_ms, windows=(window,)),
        )

    def _follow(self, device: SimDevice) -> None:
        """The newest order that counts, if it is new: fetched and swapped to at once, or refused."""
        with self.database.reading() as session:
            row = session.execute(
                select(AssignmentRow, Build.digest, Version.name)
                .join(Desired, Desired.assignment == AssignmentRow.id)
                .join(Build, Build.id == AssignmentRow.build_id)
                .join(Version, Version.id == AssignmentRow.version_id)
                .where(Desired.device == device.id)
            ).one_or_none()
        if row is None or row[0].counter <= device.counter:
            return
        order, digest, version = row
        device.counter = order.counter
        self.sent.append((self.now_ms, device.id, version, order.kind))
        report = Report(
            seq=0,
            time_ms=self.now_ms + device.skew_ms,
            assignment=order.id,
            counter=order.counter,
            model="digits",
            version=version,
            build=digest,
            state=State.FETCHING,
            previous=device.active,
        )
        told = [report]
        if version in device.refuses:
            told.append(replace_report(report, State.FAILED, Reason.LOAD_FAILED))
        elif action_of(order.why) == "remove":
            device.previous, device.active = None, None
            told.append(replace_report(report, State.REMOVED))
        else:
            if device.active != digest:
                told.append(replace_report(report, State.PROBATION))
                device.previous, device.active = device.active, digest
            told.append(replace_report(report, State.ACTIVE))
        with self.database.session() as session:
            batch = [self._said(device, msgspec.structs.replace(each, seq=self._seq(device))) for each in told]
            store(session, batch, self.now_ms)

    def _seq(self, device: SimDevice) -> int:
        device.seq += 1
        return device.seq

    def _said(self, device: SimDevice, message: UpMessage) -> Incoming:
        return Incoming(device.id, message, self.now_ms)

    def power(self, name: str, on: bool) -> None:
        self.devices[name].on = on
        with self.database.session() as session:
            store(session, [self._said(self.devices[name], Status(boot_id="b", online=on))], self.now_ms)

    # --- asking ---------------------------------------------------------------------------------------------------

    def act(self, name: str, action: Action) -> None:
        with self.database.session() as session:
            commands.act(session, name, action, ANN, self.now_ms)

    def show(self, name: str) -> views.CampaignView:
        with self.database.reading() as session:
            return views.show(session, name, self.now_ms)

    def parts(self, name: str) -> dict[str, views.CampaignDeviceView]:
        with self.database.reading() as session:
            return {part.device: part for part in views.list_devices(session, name, 1000)[0]}

    def events(self, name: str) -> list[views.EventView]:
        with self.database.reading() as session:
            return views.list_events(session, name, 1000)[0]

    def running(self) -> dict[str, str | None]:
        """What every device serves."""
        return {one.id: self.versions[one.active] if one.active else None for one in self.devices.values()}


# What `Rig.create` may change in the file.
CHANGES = {
    "name": "name: digits",
    "gates": "max_rate: 0.01",
    "canary": "group: canary, soak: 5s",
    "rest": "percent: 100",
}


def replace_report(report: Report, state: State, reason: Reason = Reason.NONE) -> Report:
    return msgspec.structs.replace(
        report, state=state, reason=reason, detail="" if reason is Reason.NONE else "told so"
    )


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own, without TCP; its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL is not installed")
    binaries = found[-1]
    # Not pytest's folder: only root may enter that one.
    with tempfile.TemporaryDirectory(prefix="covey-pg-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        shutil.chown(data, "postgres", "postgres")
        yield from _running(binaries, data)


def _running(binaries: Path, data: Path) -> Iterator[str]:
    def as_postgres(*words: str | Path) -> None:
        command = ["runuser", "-u", "postgres", "--", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)

    as_postgres(binaries / "initdb", "-D", data / "db", "-A", "trust", "-N")
    options = f"-c listen_addresses= -c unix_socket_directories={data} -c fsync=off"
    as_postgres(binaries / "pg_ctl", "-D", data / "db", "-w", "-o", options, "-l", data / "log", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={data}"
    finally:
        as_postgres(binaries / "pg_ctl", "-D", data / "db", "-w", "-m", "immediate", "stop")


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Six devices (one canary, two of line-a, three more), each with its own idea of the time, on version 1.0."""
    with opened(f"sqlite:///{tmp_path / 'covey.db'}") as database:
        yield make_rig(database)


def make_rig(database: Database) -> Rig:
    made = Rig(database)
    for version in ("1.0", "1.1", "1.2"):
        made.add_version(version)
    groups = {"press-1": ("canary",), "press-2": ("line-a",), "press-3": ("line-a",)}
    for number in range(1, 7):
        made.add_device(f"press-{number}", *groups.get(f"press-{number}", ()), skew_ms=(number - 3) * 3_600_000)
    with database.session() as session:
        build = session.scalars(select(Build).join(Version).where(Version.name == "1.0")).one()
        orders = [NewOrder(device, "digits", build.version_id, build.id, "manual") for device in made.devices]
        issue(session, orders, made.now_ms)
    made.run(10)
    assert set(made.running().values()) == {"1.0"}
    made.sent.clear()
    return made


def test_three_stages_one_after_the_other(rig: Rig) -> None:
    name = rig.create("1.1")
    view = rig.run_until(name, "done")
    assert set(rig.running().values()) == {"1.1"}
    assert view.waiting_for == "done: 6 of 6 devices active"
    assert [stage.state for stage in view.stages] == ["passed"] * 3
    when = {device: at_ms for at_ms, device, _, _ in rig.sent}
    assert when["press-2"] - when["press-1"] >= 5000
    assert when["press-4"] - when["press-3"] >= 3000
    kinds = [event.kind for event in rig.events(name)]
    assert kinds[:4] == ["created", "started", "stage_started", "assigned"]
    assert kinds[-2:] == ["stage_passed", "done"]
    passed = next(event for event in rig.events(name) if event.kind == "stage_passed")
    latency = next(gate for gate in passed.detail["gates"] if gate["gate"] == "latency")
    assert latency["status"] == "passing"
    assert latency["requests"] >= 100
    assert latency["ratio"] == pytest.approx(1.05, abs=0.15)


def test_it_says_what_it_waits_for(rig: Rig) -> None:
    name = rig.create("1.1")
    seen = set()
    for _ in range(12):
        rig.run()
        seen.add(rig.show(name).waiting_for)
    assert "canary: orders are going out" in seen
    assert any("canary: 1 of 1 active; errors has 0 of 50 requests; latency has" in words for words in seen)
    assert any("soak 1 s left" in words for words in seen)


def test_a_slow_version_goes_back_by_itself(rig: Rig) -> None:
    name = rig.create("1.2")
    view = rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}
    assert {device for _, device, version, _ in rig.sent if version == "1.2"} == {"press-1"}
    assert view.verdict is not None
    assert (view.verdict["gate"], view.verdict["stage"], view.verdict["status"]) == ("latency", "canary", "breached")
    assert view.verdict["ratio"] > 5
    assert view.halt_to_restored_s is not None
    assert 0 <= view.halt_to_restored_s <= 3
    part = rig.parts(name)["press-1"]
    assert part.state == "rolled_back"
    assert part.restored_ms is not None
    assert {each.state for device, each in rig.parts(name).items() if device != "press-1"} == {"planned"}
    assert [event.kind for event in rig.events(name)][-4:] == [
        "gate_breached",
        "rolling_back",
        "restoring",
        "rolled_back",
    ]


def test_errors_that_fall_back_trip_too(rig: Rig) -> None:
    rig.failing["1.1"] = 0.2
    name = rig.create("1.1")
    view = rig.run_until(name, "rolled_back")
    assert view.verdict is not None
    assert view.verdict["gate"] == "errors"


def test_install_failures_trip_and_a_device_that_went_back_itself_counts_as_restored(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    name = rig.create("1.1")
    view = rig.run_until(name, "rolled_back")
    assert view.verdict is not None
    assert (view.verdict["gate"], view.verdict["failures"]) == ("install_failures", 1)
    assert rig.parts(name)["press-1"].state == "restored_locally"
    assert set(rig.running().values()) == {"1.0"}
    with rig.database.reading() as session:
        wanted = session.execute(
            select(Version.name)
            .join(AssignmentRow, AssignmentRow.version_id == Version.id)
            .join(Desired, Desired.assignment == AssignmentRow.id)
            .where(Desired.device == "press-1")
        ).scalar_one()
    assert wanted == "1.0"


def test_a_breach_may_pause_and_a_person_may_go_on(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="pause")
    view = rig.run_until(name, "paused")
    assert view.waiting_for.startswith("paused: canary: latency")
    sent = len(rig.sent)
    rig.run(20)
    assert (rig.show(name).state, len(rig.sent)) == ("paused", sent)
    rig.act(name, Action.RESUME)
    rig.run(30)
    view = rig.show(name)
    assert view.stage >= 1  # accepted for the canary; the next stage is judged anew
    assert rig.run_until(name, "paused").gates_stage == "line-a"


def test_a_breach_may_halt_and_a_person_rolls_back(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt")
    view = rig.run_until(name, "halted")
    assert "roll back or abort" in view.waiting_for
    with pytest.raises(Conflict, match="halted cannot resume"):
        rig.act(name, Action.RESUME)
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_a_device_that_is_off_does_not_block_and_catches_up(rig: Rig) -> None:
    rig.power("press-5", on=False)
    name = rig.create("1.1")
    view = rig.run_until(name, "done")
    assert view.waiting_for == "done: 5 of 6 devices active, 1 to catch up"
    assert rig.running()["press-5"] == "1.0"
    rig.power("press-5", on=True)
    rig.run(3)
    assert rig.running()["press-5"] == "1.1"
    assert rig.parts(name)["press-5"].state == "active"


def test_a_device_that_was_off_while_the_rest_went_back_never_runs_the_version(rig: Rig) -> None:
    rig.power("press-1", on=False)
    with rig.database.session() as session:
        session.add(GroupMember(group="canary", device="press-2"))
    name = rig.create("1.2")
    rig.run_until(name, "rolled_back")
    assert rig.parts(name)["press-1"].state == "skipped"
    rig.power("press-1", on=True)
    rig.run(5)
    assert set(rig.running().values()) == {"1.0"}
    assert ("press-1", "1.2") not in {(device, version) for _, device, version, _ in rig.sent}


def test_a_reached_device_that_is_off_does_not_hold_up_the_return_for_ever(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt", canary="count: 2, soak: 5s")
    rig.run_until(name, "halted")
    off = next(device for device, version in rig.running().items() if version == "1.2")
    rig.power(off, on=False)
    rig.act(name, Action.ROLLBACK)
    rig.run(5)
    assert rig.show(name).state == "rolling_back"
    view = rig.run_until(name, "rolled_back", seconds=40)
    assert view.waiting_for == "rolled back: 1 of 2 devices restored, 1 off; their order waits for them"
    rig.power(off, on=True)
    rig.run(3)
    assert set(rig.running().values()) == {"1.0"}
    assert rig.parts(name)[off].state == "rolled_back"


def test_nothing_goes_out_while_paused_or_after_an_abort(rig: Rig) -> None:
    name = rig.create("1.1")
    rig.run(2)
    rig.act(name, Action.PAUSE)
    rig.act(name, Action.PAUSE)
    rig.run(30)
    assert {device for _, device, _, _ in rig.sent} == {"press-1"}
    assert rig.show(name).waiting_for == "paused by ann in stage canary"
    rig.act(name, Action.RESUME)
    rig.run(3)
    rig.act(name, Action.ABORT)
    sent = len(rig.sent)
    rig.run(30)
    assert len(rig.sent) == sent
    assert rig.show(name).state == "aborted"
    with rig.database.reading() as session:
        actions = list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))
    assert actions == [f"campaign.{word}" for word in ("create", "start", "pause", "resume", "abort")]


def test_a_soak_can_be_skipped_and_a_done_campaign_rolled_back(rig: Rig) -> None:
    name = rig.create("1.1", canary="group: canary, soak: 1h")
    rig.run(60)
    assert rig.show(name).stage == 0
    rig.act(name, Action.SKIP_SOAK)
    rig.act(name, Action.SKIP_SOAK)
    rig.run_until(name, "done")
    rig.act(name, Action.ROLLBACK)
    assert rig.run_until(name, "rolled_back").restored == 6
    assert set(rig.running().values()) == {"1.0"}


def test_devices_without_a_build_before_go_back_to_none(rig: Rig) -> None:
    rig.add_device("fresh", "canary")
    rig.latency_ms["1.1"] = 4.0
    name = rig.create("1.1")
    rig.run(6)
    assert rig.running()["fresh"] == "1.1"
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert rig.running() == {**{f"press-{number}": "1.0" for number in range(1, 7)}, "fresh": None}


def test_a_server_that_restarts_goes_on_where_it_was(rig: Rig) -> None:
    name = rig.create("1.1")
    for _ in range(80):
        rig.restart()
        rig.run()
    assert rig.show(name).state == "done"
    assert sorted(device for _, device, _, _ in rig.sent) == sorted(rig.devices)


def test_looking_again_without_news_changes_nothing(rig: Rig) -> None:
    name = rig.create("1.1")
    rig.run(4)
    before = (rig.show(name), rig.events(name), rig.parts(name))
    for _ in range(5):
        rig.service.tick()
    assert (rig.show(name), rig.events(name), rig.parts(name)) == before


def test_two_campaigns_never_share_a_device_of_a_model(rig: Rig) -> None:
    first = rig.create("1.1")
    second = rig.create("1.2", start=False)
    with pytest.raises(Conflict, match="digits-1.1 is under way with digits") as caught:
        rig.act(second, Action.START)
    assert caught.value.extra["campaigns"] == [first]
    with pytest.raises(Conflict, match="there is a campaign named digits-1.1"):
        rig.create("1.1")
    rig.run_until(first, "done")
    rig.act(second, Action.START)
    rig.run(2)
    with pytest.raises(Conflict, match="digits-1.2 is under way"):
        rig.act(first, Action.ROLLBACK)


def test_an_order_by_a_person_takes_the_device_out_of_the_campaign(rig: Rig) -> None:
    name = rig.create("1.2", on_breach="halt")
    rig.run_until(name, "halted")
    with rig.database.session() as session:
        build = session.scalars(select(Build).join(Version).where(Version.name == "1.1")).one()
        issue(session, [NewOrder("press-1", "digits", build.version_id, build.id, "manual")], rig.now_ms)
    rig.run(2)
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert rig.running()["press-1"] == "1.1"
    assert rig.parts(name)["press-1"].state == "skipped"


def test_a_device_that_runs_the_version_already_is_left_alone(rig: Rig) -> None:
    rig.run_until(rig.create("1.1"), "done")
    rig.sent.clear()
    again = rig.create("1.1", name="name: again")
    view = rig.run_until("again-1.1", "done")
    assert rig.sent == []
    assert view.active == 6
    assert again == "again-1.1"


def test_devices_without_a_fitting_build_are_left_out_with_the_reason(rig: Rig) -> None:
    rig.add_device("odd", facts=replace_facts())
    name = rig.create("1.1")
    part = rig.parts(name)["odd"]
    assert (part.state, part.stage, part.build) == ("skipped", None, None)
    assert part.detail
    assert part.why["chosen"] is None
    assert rig.show(name).left_out == 1
    chosen = rig.parts(name)["press-1"].why["chosen"]
    assert chosen["target"] == "onnxruntime-fp32"
    assert chosen["reason"]


def replace_facts() -> Facts:
    return msgspec.structs.replace(FACTS, architecture="s390x", runtimes=())


def test_a_file_that_names_what_is_not_there_is_refused_with_the_line(rig: Rig) -> None:
    from covey_server.core.document import DocumentError

    with pytest.raises(DocumentError, match=r"line 5: stages\[0\].group: there is no group elsewhere"):
        rig.create("1.1", canary="group: elsewhere")
    with pytest.raises(DocumentError, match="line 3: version: there is no version 9.9 of model digits"):
        rig.create("9.9")
    with rig.database.session() as session:
        session.execute(update(Build).values(state="refused"))
    with pytest.raises(Invalid, match="no device of the target gets a build"):
        rig.create("1.1")


def test_the_same_on_postgresql() -> None:
    with postgresql() as url, opened(url) as database:
        rig = make_rig(database)
        rig.power("press-5", on=False)
        assert rig.run_until(rig.create("1.1"), "done").active == 5
        rig.power("press-5", on=True)
        rig.run(2)
        view = rig.run_until(rig.create("1.2"), "rolled_back")
        assert view.verdict is not None
        assert view.verdict["gate"] == "latency"
        assert set(rig.running().values()) == {"1.1"}
        with database.reading() as session:
            assert set(session.scalars(select(CampaignDevice.state))) >= {"active", "rolled_back", "planned"}
            assert set(session.scalars(select(Reported.model))) == {"digits"}
