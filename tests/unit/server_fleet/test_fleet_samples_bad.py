"""What devices that lie, lose or fall silent cost: the sample that it is about, or the fetch, and never what came."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import ListSamples, SampleQuestion
from covey_hil.testing.made_samples import keep, sample
from covey_hil.testing.sample_office import DEVICE, Office

Made = Callable[..., Office]


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
    office.kept(1)
    office.devices.spoil = spoil
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 1, 0, 1)
    assert done.detail.startswith("left out: ")
    assert (office.rows, office.files) == ([], set())
    office.devices.spoil = lambda _, reply: reply
    assert office.fetch().fetched == 1


def test_what_is_no_sample_or_another_models_costs_no_other(office: Office) -> None:
    office.kept(1)
    keep(office.devices.folder / DEVICE, 2, data=b"no sample at all")
    keep(office.devices.folder / DEVICE, 3, data=sample("other"))
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 3, 1, 2)
    assert (len(office.rows), len(office.files)) == (1, 1)


def test_one_that_has_gone_meanwhile_is_left_out(office: Office) -> None:
    first, _ = office.kept(1, 2)

    def gone(question: SampleQuestion, reply: Reply) -> Reply:
        if isinstance(question, ListSamples):
            first.unlink(missing_ok=True)
        return reply

    office.devices.spoil = gone
    done = office.fetch()
    assert (done.state, done.found, done.fetched, done.left_out) == ("done", 2, 1, 1)
    assert "made room" in done.detail


def test_a_reply_that_is_lost_is_asked_for_again(office: Office) -> None:
    office.kept(1, 2)
    lost = iter([True, False, True, True, False])
    office.devices.spoil = lambda _, reply: None if next(lost, False) else reply
    assert office.fetch().fetched == 2


def test_a_device_that_falls_silent_ends_the_fetch_and_what_came_stays(office: Office) -> None:
    office.kept(*range(1, 31))
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
    office.kept(1)
    office.devices.spoil = lambda _, reply: msgspec.structs.replace(reply, reason=Reason.UNKNOWN_COMMAND)
    done = office.fetch()
    assert (done.state, done.reason, done.detail) == (
        "failed", "unknown_command", "its agent is too old to be asked for samples"
    )  # fmt: skip
