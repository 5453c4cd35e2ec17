"""Samples leave a device only if its own settings say so twice; then which there are, and each one's bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from covey_agent.cli import main
from covey_agent.samples import Samples
from covey_contract.messages import Reply
from covey_contract.reasons import Reason
from covey_contract.samples import MAX_SAMPLE_BYTES, PIECE_BYTES, ListSamples, ReadSample, SampleQuestion
from covey_contract.wire import MAX_MESSAGE_BYTES, encode
from covey_hil.testing.made_samples import keep

REPLY = Reply(id="q1", time_ms=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "capture"


def ask(folder: Path, question: SampleQuestion | None, *, kept: bool = True, may_leave: bool = True) -> Reply:
    return Samples(folder, kept, may_leave).answer(REPLY, question)


@pytest.mark.parametrize(("kept", "may_leave", "word"), [(False, False, "capture-share"), (False, True, "capture-share"), (True, False, "capture-send")])  # fmt: skip
@pytest.mark.parametrize("question", [ListSamples(), ReadSample(model="digits", name="1-000001.npz")])
def test_nothing_leaves_unless_both_settings_say_so(
    folder: Path, question: SampleQuestion, kept: bool, may_leave: bool, word: str
) -> None:
    keep(folder, 1)
    reply = ask(folder, question, kept=kept, may_leave=may_leave)
    assert (reply.reason, reply.samples, reply.piece) == (Reason.NOT_ALLOWED, (), None)
    assert word in reply.detail


def test_to_send_what_is_not_kept_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--state", str(tmp_path), "--capture-send"]) == 2
    assert "--capture-share" in capsys.readouterr().err


def test_the_newest_come_first_page_by_page(folder: Path) -> None:
    for number in (1, 9, 10, 3):
        keep(folder, number)
    keep(folder, 5, model="counting")
    listed = ask(folder, ListSamples()).samples
    assert [(one.model, int(one.name[14:20])) for one in listed] == [
        ("digits", 10), ("digits", 9), ("counting", 5), ("digits", 3), ("digits", 1)
    ]  # fmt: skip
    assert listed[0].size == (folder / "digits" / listed[0].name).stat().st_size
    assert ask(folder, ListSamples(skip=1, limit=2)).samples == listed[1:3]
    assert ask(folder, ListSamples(skip=5)).samples == ()
    assert [one.model for one in ask(folder, ListSamples(model="counting")).samples] == ["counting"]
    assert ask(folder, ListSamples(model="nothing")).samples == ()


def test_a_folder_that_is_not_there_yet_has_none(folder: Path) -> None:
    reply = ask(folder, ListSamples())
    assert (reply.reason, reply.samples) == (Reason.NONE, ())


def test_what_is_no_sample_is_not_named(folder: Path, tmp_path: Path) -> None:
    kept = keep(folder, 1)
    for name in ("notes.txt", "1-2.part", "1-x.npz", f"{'9' * 17}-1.npz"):
        (folder / "digits" / name).write_bytes(b"x")
    (folder / "digits" / "5-5.npz").symlink_to(tmp_path)
    (folder / "digits" / "6-6.npz").mkdir()
    (folder / "Not A Model").mkdir()
    (folder / "Not A Model" / "1-1.npz").write_bytes(b"x")
    assert [one.name for one in ask(folder, ListSamples()).samples] == [kept.name]


def test_pieces_make_the_file(folder: Path) -> None:
    path = keep(folder, 1, count=50_000)
    whole, came, digests = path.read_bytes(), b"", []
    while len(came) < len(whole):
        reply = ask(folder, ReadSample(model="digits", name=path.name, offset=len(came)))
        assert len(encode(reply)) <= MAX_MESSAGE_BYTES
        assert reply.piece is not None
        assert reply.piece.size == len(whole)
        assert len(reply.piece.data) == min(PIECE_BYTES, len(whole) - len(came))
        came += reply.piece.data
        digests.append(reply.piece.sha256)
    assert came == whole
    assert digests == [hashlib.sha256(whole).hexdigest(), None, None]


def test_one_that_has_gone_is_said_to_have(folder: Path) -> None:
    assert ask(folder, ReadSample(model="digits", name="1-1.npz")).reason is Reason.NOT_THERE


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_bytes(b"secret")
    (folder / "digits").mkdir(parents=True)
    (folder / "digits" / "1-1.npz").symlink_to(secret)
    reply = ask(folder, ReadSample(model="digits", name="1-1.npz"))
    assert (reply.reason, reply.piece) == (Reason.STORAGE_ERROR, None)


def test_one_that_is_too_large_is_not_read(folder: Path) -> None:
    path = keep(folder, 1)
    with path.open("r+b") as file:
        file.truncate(MAX_SAMPLE_BYTES + 1)
    piece = ask(folder, ReadSample(model="digits", name=path.name)).piece
    assert piece is not None
    assert (piece.size, piece.data) == (MAX_SAMPLE_BYTES + 1, b"")


def test_a_question_that_asks_nothing(folder: Path) -> None:
    assert ask(folder, None).reason is Reason.UNKNOWN_COMMAND


def test_a_full_page_fits_into_a_message(folder: Path) -> None:
    for number in range(450):
        (path := folder / ("m" * 64) / f"{10**15 + number}-{10**11 + number}.npz").parent.mkdir(
            parents=True, exist_ok=True
        )
        path.write_bytes(b"x")
    reply = ask(folder, ListSamples())
    assert len(reply.samples) == 400
    assert len(encode(reply)) <= MAX_MESSAGE_BYTES
