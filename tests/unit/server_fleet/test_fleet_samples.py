"""Samples from a device to the server: each once, checked, within bounds, and gone when they should be. The device is the agent's own
code on a folder; what it says badly is set by the test."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select, update

from covey_agent.samples import Samples
from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import ListSamples, ReadSample, SampleQuestion
from covey_hil.testing.made_samples import BUILD, keep, sample
from covey_server.bus import Bus
from covey_server.db.engine import Database
from covey_server.db.tables import Device, Sample, SampleFetch
from covey_server.errors import Conflict, Invalid, NotFound
from covey_server.samples import fetches, shelf
from covey_server.samples.desk import SampleDesk
from covey_server.samples.shelf import SampleShelf

DEVICE, OTHER = "d0000", "d0001"
CAPTURE = {"capture": {"share": 1.0, "limit_mb": 200.0, "may_leave": True}}


@dataclass
class Devices:
    """What devices answer; `spoil` may change or lose a reply. Counts questions by kind."""

    folder: Path
    may_leave: bool = True
    spoil: Callable[[SampleQuestion, Reply], Reply | None] = lambda _question, reply: reply
    asked: list[SampleQuestion] = field(default_factory=list)

    def __call__(self, device: str, question: SampleQuestion) -> Reply | None:
        self.asked.append(question)
        answerer = Samples(self.folder / device, kept=True, may_leave=self.may_leave)
        return self.spoil(question, answerer.answer(Reply(id="q", time_ms=1), question))

    @property
    def read(self) -> list[ReadSample]:
        return [one for one in self.asked if isinstance(one, ReadSample)]


class Office:
    """A desk with its shelf, started."""

    def __init__(self, database: Database, folder: Path, now_ms: int, **limits: int) -> None:
        self.database = database
        self.now_ms = now_ms
        self.devices = Devices(folder / "devices")
        self.folder = folder / "samples"
        self.given_up = threading.Event()
        made = {"max_bytes": 1 << 30, "keep_days": 30, "fetch_bytes": 1 << 30, **limits}
        self.shelf = SampleShelf(
            database, self.folder, lambda: self.now_ms, max_bytes=made["max_bytes"], keep_days=made["keep_days"]
        )
        self.desk = SampleDesk(
            *(database, self.shelf, lambda: self.now_ms, Bus(), self.devices, self.given_up.set, made["fetch_bytes"])
        )
        with database.session() as session:
            session.execute(update(Device).values(resources=CAPTURE))

    def begin(self, device: str = DEVICE, model: str | None = None, most: int = 100) -> int:
        with self.database.session() as session:
            number = fetches.ask_device(session, device, model, most, "ann", self.now_ms).id
        self.desk.wake()
        return number

    def fetch(self, device: str = DEVICE, model: str | None = None, most: int = 100) -> SampleFetch:
        """As it has ended."""
        return self.ended(self.begin(device, model, most))

    def ended(self, number: int) -> SampleFetch:
        deadline = time.monotonic() + 30
        while (found := self.look(number)).ended_ms is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found

    def look(self, number: int) -> SampleFetch:
        with self.database.reading() as session:
            return fetches.get_fetch(session, number)

    @property
    def rows(self) -> list[Sample]:
        with self.database.reading() as session:
            return list(session.scalars(select(Sample).order_by(Sample.device, Sample.name)))

    @property
    def files(self) -> set[str]:
        assert not list((self.folder / "incoming").iterdir()), "something half-written was left"
        return {path.name for path in self.folder.glob("??/*")}


Made = Callable[..., Office]


@pytest.fixture
def made(database: Database, tmp_path: Path, now_ms: int) -> Iterator[Made]:
    offices = []

    def make(**limits: int) -> Office:
        office = Office(database, tmp_path, now_ms, **limits)
        office.desk.start()
        offices.append(office)
        return office

    yield make
    for office in offices:
        office.desk.stop()


@pytest.fixture
def office(made: Made) -> Office:
    return made()


def kept(office: Office, *numbers: int, device: str = DEVICE, model: str = "digits", count: int = 4) -> list[Path]:
    return [keep(office.devices.folder / device, number, model, count=count) for number in numbers]


def test_a_sample_comes_as_it_is_and_once(office: Office) -> None:
    paths = kept(office, 1, 2, 3, count=60_000)
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out, done.reason) == ("done", 3, 3, 0, "none")
    assert [(one.device, one.name) for one in office.rows] == [(DEVICE, path.name) for path in paths]
    first = office.rows[0]
    assert (first.model, first.version, first.target, first.build) == ("digits", "1.0", "onnxruntime-int8", BUILD)
    assert office.shelf.files.path(first.sha256).read_bytes() == paths[0].read_bytes()
    assert done.bytes == sum(path.stat().st_size for path in paths)
    read = len(office.devices.read)
    again = office.fetch()
    assert (again.state, again.found, again.fetched, len(office.devices.read)) == ("done", 0, 0, read)
    kept(office, 4)
    assert (office.fetch().fetched, len(office.rows)) == (1, 4)


def test_the_newest_of_one_model_and_the_others_by_asking_again(office: Office) -> None:
    kept(office, *range(1, 6))
    kept(office, 7, model="counting")
    assert office.fetch(model="digits", most=2).fetched == 2
    assert [int(one.name[14:20]) for one in office.rows] == [4, 5]
    assert office.fetch(model="digits", most=2).fetched == 2
    assert [int(one.name[14:20]) for one in office.rows] == [2, 3, 4, 5]
    assert office.fetch().found == 2


def test_a_long_list_comes_in_pages(office: Office) -> None:
    kept(office, *range(1, 410))
    done = office.fetch(most=405)
    assert (done.found, done.fetched) == (405, 405)
    assert [one.skip for one in office.devices.asked if isinstance(one, ListSamples)] == [0, 400]


def test_what_its_settings_do_not_let_leave_stays(office: Office) -> None:
    kept(office, 1)
    office.devices.may_leave = False
    done = office.fetch()
    assert (done.state, done.reason) == ("failed", Reason.NOT_ALLOWED.value)
    assert "--capture-send" in done.detail
    assert (office.rows, office.files) == ([], set())


@pytest.mark.parametrize(
    ("resources", "code"),
    [({}, "no_samples"), ({"capture": {"share": 1.0, "limit_mb": 1.0}}, "samples_stay")],
)
def test_what_a_device_has_told_already_is_not_asked(office: Office, resources: dict[str, object], code: str) -> None:
    with office.database.session() as session:
        session.execute(update(Device).where(Device.id == DEVICE).values(resources=resources))
    with pytest.raises(Conflict) as refused:
        office.begin()
    assert (refused.value.code, office.devices.asked) == (code, [])


def test_a_device_that_is_away_revoked_or_unknown_is_not_asked(office: Office) -> None:
    with office.database.session() as session:
        session.execute(update(Device).where(Device.id == DEVICE).values(online=False))
        session.execute(update(Device).where(Device.id == OTHER).values(revoked_ms=1))
    for device, code in ((DEVICE, "device_offline"), (OTHER, "device_revoked")):
        with pytest.raises(Conflict) as refused:
            office.begin(device)
        assert refused.value.code == code
    with pytest.raises(NotFound):
        office.begin("nobody")


def test_a_group_is_asked_as_far_as_it_can_be(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        kept(office, number + 1, device=f"d{number:04}")
    with office.database.session() as session:
        session.execute(update(Device).where(Device.id == "d0003").values(online=False))
        asked = fetches.ask_group(session, "all", None, 5, "ann", office.now_ms)
    office.desk.wake()
    assert {office.ended(one.id).state for one in asked.fetches} == {"done"}
    assert asked.skipped == {"d0003": "it is not online"}
    assert sorted(one.device for one in office.rows) == [f"d{number:04}" for number in range(10) if number != 3]
    monkeypatch.setattr(fetches, "MAX_DEVICES", 9)
    with office.database.session() as session, pytest.raises(Invalid, match="more than 9"):
        fetches.ask_group(session, "all", None, 5, "ann", office.now_ms)


# --- devices that do not do as they should ------------------------------------------------------------------------------


def flipped(_: SampleQuestion, reply: Reply) -> Reply:
    """The bytes are others than those of the digest."""
    if reply.piece is None:
        return reply
    data = bytes([reply.piece.data[0] ^ 1]) + reply.piece.data[1:]
    return msgspec.structs.replace(reply, piece=msgspec.structs.replace(reply.piece, data=data))


def grown(_: SampleQuestion, reply: Reply) -> Reply:
    if reply.piece is None:
        return reply
    return msgspec.structs.replace(reply, piece=msgspec.structs.replace(reply.piece, data=reply.piece.data + b"x"))


def emptied(_: SampleQuestion, reply: Reply) -> Reply:
    if reply.piece is None:
        return reply
    return msgspec.structs.replace(reply, piece=msgspec.structs.replace(reply.piece, data=b""))


def dumb(question: SampleQuestion, reply: Reply) -> Reply:
    return reply if isinstance(question, ListSamples) else Reply(id="q", time_ms=1)


def undigested(_: SampleQuestion, reply: Reply) -> Reply:
    if reply.piece is None:
        return reply
    return msgspec.structs.replace(reply, piece=msgspec.structs.replace(reply.piece, sha256=None))


@pytest.mark.parametrize("spoil", [flipped, grown, emptied, dumb, undigested])
def test_bytes_that_are_not_what_was_announced_are_left_out(
    office: Office, spoil: Callable[[SampleQuestion, Reply], Reply]
) -> None:
    kept(office, 1)
    office.devices.spoil = spoil
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 1, 0, 1)
    assert done.detail.startswith("left out: ")
    assert (office.rows, office.files) == ([], set())
    office.devices.spoil = lambda _, reply: reply
    assert office.fetch().fetched == 1


def test_what_is_no_sample_or_another_models_costs_no_other(office: Office) -> None:
    kept(office, 1)
    keep(office.devices.folder / DEVICE, 2, data=b"no sample at all")
    keep(office.devices.folder / DEVICE, 3, data=sample("other"))
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 3, 1, 2)
    assert (len(office.rows), len(office.files)) == (1, 1)


def test_one_that_has_gone_meanwhile_is_left_out(office: Office) -> None:
    first, _ = kept(office, 1, 2)

    def gone(question: SampleQuestion, reply: Reply) -> Reply:
        if isinstance(question, ListSamples):
            first.unlink(missing_ok=True)
        return reply

    office.devices.spoil = gone
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 2, 1, 1)
    assert "made room" in done.detail


def test_a_reply_that_is_lost_is_asked_for_again(office: Office) -> None:
    kept(office, 1, 2)
    lost = iter([True, False, True, True, False])
    office.devices.spoil = lambda _, reply: None if next(lost, False) else reply
    assert office.fetch().fetched == 2


def test_a_device_that_falls_silent_ends_the_fetch_and_what_came_stays(office: Office) -> None:
    kept(office, *range(1, 31))
    office.devices.spoil = lambda _, reply: reply if len(office.devices.read) <= 10 else None
    done = office.fetch()
    assert (done.state, done.reason) == ("failed", Reason.TIMED_OUT.value)
    assert 0 < done.fetched < 30
    assert len(office.rows) == done.fetched == len(office.files)
    office.devices.spoil = lambda _, reply: reply
    again = office.fetch()
    assert again.found == 30 - done.fetched == again.fetched
    assert len(office.rows) == 30


def test_an_agent_that_is_too_old_is_said_to_be(office: Office) -> None:
    kept(office, 1)
    office.devices.spoil = lambda _, reply: msgspec.structs.replace(reply, reason=Reason.UNKNOWN_COMMAND)
    done = office.fetch()
    assert (done.state, done.reason, done.detail) == (
        "failed", "unknown_command", "its agent is too old to be asked for samples"
    )  # fmt: skip


# --- bounds -------------------------------------------------------------------------------------------------------------


def test_no_more_bytes_at_once_than_the_setting_says(made: Made) -> None:
    size = len(sample(count=1000))
    office = made(fetch_bytes=3 * size)
    kept(office, *range(1, 6), count=1000)
    done = office.fetch()
    assert (done.state, done.fetched) == ("done", 3)
    assert "sample_fetch_max_bytes" in done.detail
    assert office.fetch().fetched == 2


def test_no_more_bytes_are_kept_than_the_setting_says(made: Made) -> None:
    office = made(max_bytes=3 * len(sample(count=1000)))
    kept(office, *range(1, 6), count=1000)
    done = office.fetch()
    assert (done.state, done.reason, done.fetched) == ("failed", Reason.NO_SPACE.value, 3)
    assert "samples_max_bytes" in done.detail
    assert office.shelf.forget(Sample.device == DEVICE) == 3
    assert office.fetch(most=2).fetched == 2


def test_the_disks_last_bytes_are_left_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(office, 1)
    monkeypatch.setattr(shelf, "MARGIN_BYTES", 1 << 60)
    done = office.fetch()
    assert (done.state, done.reason, office.rows) == ("failed", Reason.NO_SPACE.value, [])


def test_samples_go_after_their_days(office: Office) -> None:
    kept(office, 1)
    number = office.fetch().id
    office.now_ms += 29 * 86_400_000
    kept(office, 2)
    office.fetch()
    assert office.shelf.prune() == 0
    office.now_ms += 2 * 86_400_000
    assert office.shelf.prune() == 1
    assert [int(one.name[14:20]) for one in office.rows] == [2]
    assert office.files == {office.rows[0].sha256}
    with pytest.raises(NotFound):
        office.look(number)


def test_a_file_that_two_devices_have_goes_with_the_last(office: Office) -> None:
    for device in (DEVICE, OTHER):
        kept(office, 1, device=device)
        office.fetch(device)
    assert (len(office.rows), len(office.files)) == (2, 1)
    assert office.shelf.forget(Sample.device == DEVICE) == 1
    assert office.files == {office.rows[0].sha256}
    assert office.shelf.forget(Sample.device == OTHER) == 1
    assert office.files == set()


def test_the_same_bytes_under_another_name_are_one_sample(office: Office) -> None:
    first = kept(office, 1)[0]
    office.fetch()
    keep(office.devices.folder / DEVICE, 2, data=first.read_bytes())
    assert office.fetch().state == "done"
    assert len(office.rows) == 1


# --- starts and ends ----------------------------------------------------------------------------------------------------


def test_one_fetch_of_a_device_at_a_time(office: Office) -> None:
    kept(office, 1)
    hold = threading.Event()

    def slow(_: SampleQuestion, reply: Reply) -> Reply:
        assert hold.wait(20)
        return reply

    office.devices.spoil = slow
    number = office.begin()
    with pytest.raises(Conflict) as refused:
        office.begin()
    hold.set()
    assert (refused.value.code, office.ended(number).fetched) == ("fetch_running", 1)


def test_a_stop_breaks_a_fetch_off_and_it_goes_on_when_asked_again(office: Office) -> None:
    kept(office, *range(1, 41))

    def waits(_: SampleQuestion, reply: Reply) -> Reply | None:
        if len(office.devices.read) > 10:
            office.given_up.wait(20)
            return None
        return reply

    office.devices.spoil = waits
    number = office.begin()
    deadline = time.monotonic() + 20
    while len(office.devices.read) <= 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    office.desk.stop()
    broken = office.look(number)
    assert (broken.state, broken.reason) == ("failed", Reason.STOPPED.value)
    assert len(office.rows) == len(office.files) == broken.fetched
    office.devices.spoil = lambda _, reply: reply
    office.desk.start()
    assert office.fetch().fetched == 40 - broken.fetched
    assert len(office.rows) == 40


def test_what_a_kill_leaves_is_put_in_order_at_the_next_start(made: Made) -> None:
    office = made()
    kept(office, 1)
    office.fetch()
    office.desk.stop()
    with office.database.session() as session:
        for state in ("waiting", "running"):
            session.add(SampleFetch(device=DEVICE, most=1, state=state, asked_by="ann", asked_ms=1))
    orphan = hashlib.sha256(b"orphan").hexdigest()
    (office.folder / orphan[:2]).mkdir(exist_ok=True)
    (office.folder / orphan[:2] / orphan).write_bytes(b"orphan")
    (office.folder / "incoming" / "half").write_bytes(b"half")
    office.desk.start()
    assert office.files == {office.rows[0].sha256}
    with office.database.reading() as session:
        states = set(session.execute(select(SampleFetch.state, SampleFetch.reason).where(SampleFetch.asked_ms == 1)))
    assert {tuple(one) for one in states} == {("failed", "stopped")}
