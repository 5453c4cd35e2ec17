"""A server's database and campaign service with a fleet on them, and time that passes when told to.

Only the devices and the clock are simulated: each `SimDevice` follows the newest order that counts for it, reports as an agent
does, and serves fifty requests a second, whose latency depends on the version it runs.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from covey_contract.facts import Facts, RuntimeFact
from covey_contract.histogram import Histogram, Recorder
from covey_contract.lifecycle import State
from covey_contract.messages import BuildWindow, Report, Status, Telemetry
from covey_contract.reasons import Reason
from covey_hil.testing.postgresql import new_database
from covey_hil.testing.rows import add_build, add_version, report_of
from covey_profiles import load_profiles, match
from covey_server.audit import Actor
from covey_server.bus import Bus
from covey_server.campaigns import commands, device_views, views
from covey_server.campaigns.service import CampaignService
from covey_server.core.criticality import criticality_of
from covey_server.core.engine import Action
from covey_server.core.spec import read_spec
from covey_server.db.engine import Database
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Desired,
    Device,
    Group,
    GroupMember,
    Version,
)
from covey_server.fleet.assignments import NewOrder, action_of, issue
from covey_server.fleet.inbox import Incoming, UpMessage
from covey_server.fleet.records import store

ANN = Actor("ann", "operator", "test")
BOB = Actor("bob", "approver", "test")
ODD_DIGEST = "c" * 64  # of nothing
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
    idle: bool = False  # its application sends no requests
    stuck: bool = False  # it fetches and fetches
    waits_for: Reason | None = None  # it holds the build, and a condition does not hold yet
    pending: tuple[Report, str, bool] | None = None  # the order that it has in hand, its build, whether it removes


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
            version = add_version(session, name, now_ms=self.now_ms)
            for target in targets:
                digest = hashlib.sha256(f"{name} {target}".encode()).hexdigest()
                self.versions[digest] = name
                add_build(session, version, digest, target=target, report=report_of(target))

    def add_device(
        self,
        name: str,
        *groups: str,
        skew_ms: int = 0,
        facts: Facts = FACTS,
        labels: dict[str, str] | None = None,
        timezone: str = "UTC",
    ) -> SimDevice:
        found = match(facts, load_profiles())
        labels = labels or {}
        with self.database.session() as session:
            session.add(
                Device(
                    id=name,
                    profile=found.profile.id if found.profile else None,
                    profile_reason=found.reason,
                    simulated=True,
                    facts=msgspec.to_builtins(facts),
                    facts_digest=facts.digest(),
                    labels=labels,
                    site=labels.get("site"),
                    criticality=criticality_of(labels),
                    timezone=timezone,
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

    def make(self, text: str, *, start: bool = True, who: Actor = ANN) -> str:
        """A campaign from a whole file."""
        spec, document = read_spec(text)
        with self.database.session() as session:
            commands.create(session, spec, text, 7, document.error, who, self.now_ms)
            if start:
                commands.act(session, spec.name, Action.START, who, self.now_ms)
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
        if device.active is None or device.idle:
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
            self._go_on(device)
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
            build=str(digest),
            state=State.FETCHING,
            previous=device.active,
        )
        device.pending = report, str(digest), action_of(order.why) == "remove"
        self._say(device, report)
        self._go_on(device)

    def _go_on(self, device: SimDevice) -> None:
        """With the order that it has in hand, if nothing holds it up."""
        if device.pending is None or device.stuck:
            return
        report, digest, removes = device.pending
        report = msgspec.structs.replace(report, time_ms=self.now_ms + device.skew_ms)
        if device.waits_for is not None:
            self._say(device, replace_report(report, State.STAGED, device.waits_for))
            return
        device.pending = None
        if report.version in device.refuses:
            self._say(device, replace_report(report, State.FAILED, Reason.LOAD_FAILED))
        elif removes:
            device.previous, device.active = None, None
            self._say(device, replace_report(report, State.REMOVED))
        else:
            told = [replace_report(report, State.ACTIVE)]
            if device.active != digest:
                told.insert(0, replace_report(report, State.PROBATION))
                device.previous, device.active = device.active, digest
            self._say(device, *told)

    def _say(self, device: SimDevice, *told: Report) -> None:
        with self.database.session() as session:
            batch = [self._said(device, msgspec.structs.replace(each, seq=self._seq(device))) for each in told]
            store(session, batch, self.now_ms)

    def _seq(self, device: SimDevice) -> int:
        device.seq += 1
        return device.seq

    def _said(self, device: SimDevice, message: UpMessage) -> Incoming:
        return Incoming(device.id, message, self.now_ms)

    def crash(self, name: str) -> None:
        """A device whose new build turns out bad goes back by itself."""
        device = self.devices[name]
        with self.database.reading() as session:
            order = session.scalars(
                select(AssignmentRow)
                .join(Desired, Desired.assignment == AssignmentRow.id)
                .where(Desired.device == name)
            ).one()
        report = Report(
            seq=0,
            time_ms=self.now_ms + device.skew_ms,
            assignment=order.id,
            counter=order.counter,
            model="digits",
            version=self.versions[device.active or ""],
            build=device.active or "",
            state=State.ROLLED_BACK,
            reason=Reason.RUNNER_CRASHED,
            previous=device.previous,
        )
        device.active, device.previous = device.previous, None
        self._say(device, report)

    def power(self, name: str, on: bool) -> None:
        self.devices[name].on = on
        with self.database.session() as session:
            store(session, [self._said(self.devices[name], Status(boot_id="b", online=on))], self.now_ms)

    # --- asking ---------------------------------------------------------------------------------------------------

    def act(self, name: str, action: Action, who: Actor = ANN, stage: str | None = None) -> None:
        with self.database.session() as session:
            commands.act(session, name, action, who, self.now_ms, stage)

    def show(self, name: str) -> views.CampaignView:
        with self.database.reading() as session:
            return views.show(session, name, self.now_ms)

    def parts(self, name: str) -> dict[str, device_views.CampaignDeviceView]:
        with self.database.reading() as session:
            return {part.device: part for part in device_views.list_devices(session, name, 1000)[0]}

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


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database, of each kind in turn."""
    if request.param == "postgresql":
        url = new_database(request.getfixturevalue("postgresql"))
    else:
        url = f"sqlite:///{tmp_path / 'covey.db'}"
    with opened(url) as made:
        yield made


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def rig(database: Database) -> Rig:
    """Six devices (one canary, two of line-a, three more), each with its own idea of the time, on version 1.0."""
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
