"""Samples from a device to the server: each once, within bounds, and gone when they should be."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import MAX_SAMPLE_BYTES, ListSamples, SampleQuestion
from covey_hil.testing.made_samples import BUILD, keep, sample
from covey_hil.testing.sample_office import DEVICE, OTHER, Office
from covey_server.db.tables import Device, Sample, SampleFetch
from covey_server.errors import Conflict, Invalid, NotFound
from covey_server.samples import fetches, shelf

Made = Callable[..., Office]


def test_a_sample_comes_as_it_is_and_once(office: Office) -> None:
    paths = office.kept(1, 2, 3, count=60_000)
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
    office.kept(4)
    assert (office.fetch().fetched, len(office.rows)) == (1, 4)


def test_the_newest_of_one_model_and_the_others_by_asking_again(office: Office) -> None:
    office.kept(*range(1, 6))
    office.kept(7, model="counting")
    assert office.fetch(model="digits", most=2).fetched == 2
    assert [int(one.name[14:20]) for one in office.rows] == [4, 5]
    assert office.fetch(model="digits", most=2).fetched == 2
    assert [int(one.name[14:20]) for one in office.rows] == [2, 3, 4, 5]
    assert office.fetch().found == 2


def test_a_long_list_comes_in_pages(office: Office) -> None:
    office.kept(*range(1, 410))
    done = office.fetch(most=405)
    assert (done.found, done.fetched) == (405, 405)
    assert [one.skip for one in office.devices.asked if isinstance(one, ListSamples)] == [0, 400]


def test_what_its_settings_do_not_let_leave_stays(office: Office) -> None:
    office.kept(1)
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
        office.kept(number + 1, device=f"d{number:04}")
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


# --- bounds -------------------------------------------------------------------------------------------------------------


def test_no_more_bytes_at_once_than_the_setting_says(made: Made) -> None:
    size = len(sample(count=1000))
    office = made(fetch_bytes=3 * size)
    office.kept(*range(1, 6), count=1000)
    done = office.fetch()
    assert (done.state, done.fetched) == ("done", 3)
    assert "sample_fetch_max_bytes" in done.detail
    assert office.fetch().fetched == 2


def test_one_that_is_too_large_stands_before_no_other(office: Office) -> None:
    office.kept(1)
    with office.kept(2)[0].open("r+b") as file:
        file.truncate(MAX_SAMPLE_BYTES + 1)
    done = office.fetch(most=1)
    assert (done.state, done.found, done.fetched) == ("done", 1, 1)
    assert str(MAX_SAMPLE_BYTES) in done.detail


def test_no_more_bytes_are_kept_than_the_setting_says(made: Made) -> None:
    office = made(max_bytes=3 * len(sample(count=1000)))
    office.kept(*range(1, 6), count=1000)
    done = office.fetch()
    assert (done.state, done.reason, done.fetched) == ("failed", Reason.NO_SPACE.value, 3)
    assert "samples_max_bytes" in done.detail
    assert office.shelf.forget(Sample.device == DEVICE) == 3
    assert office.fetch(most=2).fetched == 2


def test_the_disks_last_bytes_are_left_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.kept(1)
    monkeypatch.setattr(shelf, "MARGIN_BYTES", 1 << 60)
    done = office.fetch()
    assert (done.state, done.reason, office.rows) == ("failed", Reason.NO_SPACE.value, [])


def test_samples_go_after_their_days(office: Office) -> None:
    office.kept(1)
    number = office.fetch().id
    office.now_ms += 29 * 86_400_000
    office.kept(2)
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
        office.kept(1, device=device)
        office.fetch(device)
    assert (len(office.rows), len(office.files)) == (2, 1)
    assert office.shelf.forget(Sample.device == DEVICE) == 1
    assert office.files == {office.rows[0].sha256}
    assert office.shelf.forget(Sample.device == OTHER) == 1
    assert office.files == set()


def test_the_same_bytes_under_another_name_are_one_sample(office: Office) -> None:
    first = office.kept(1)[0]
    office.fetch()
    keep(office.devices.folder / DEVICE, 2, data=first.read_bytes())
    assert office.fetch().state == "done"
    assert len(office.rows) == 1


# --- starts and ends ----------------------------------------------------------------------------------------------------


def test_one_fetch_of_a_device_at_a_time(office: Office) -> None:
    office.kept(1)
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
    office.kept(*range(1, 41))

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
    office.kept(1)
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
